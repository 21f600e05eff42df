"""TensorFlow's errors as one line for the user: a lost peer, a lack of memory, a bad example.

Each context manager turns the errors that it knows into a UserError, and lets others pass with
their traceback.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Literal

import tensorflow as tf

from trainer.config import Config
from trainer.errors import GroupError, UserError

# TensorFlow's words when another process, or its machine, has gone.
_GONE = (
    "Socket closed",
    "Connection reset by peer",
    "failed to connect to all addresses",
    "worker was restarted",
)
# The errors that TensorFlow raises for a bad file or bad content.
_INPUT_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,
    tf.errors.DataLossError,
    tf.errors.OutOfRangeError,
    tf.errors.UnknownError,
)
# The frame of TensorFlow's messages: {{function_node …}} … [Op:DecodeImage] name:
_AROUND_MESSAGES = re.compile(r"\{\{.*?\}\} ?| ?\[Op:.*")


def reason_of(error: tf.errors.OpError) -> str:
    """Returns TensorFlow's message as one line."""
    return _AROUND_MESSAGES.sub("", " ".join(error.message.split()))[:300].rstrip(". ")


def is_loss_of_peer(error: Exception) -> bool:
    """Whether TensorFlow lost the connection to another process."""
    kinds = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)
    return isinstance(error, tf.errors.OpError) and (
        isinstance(error, kinds) or any(text in error.message for text in _GONE)
    )


@contextlib.contextmanager
def lost_peers_reported(peers: Literal["workers", "TPU"] | None) -> Iterator[None]:
    """Turns TensorFlow errors caused by a lost worker or TPU into a one-line GroupError.

    Args:
        peers: what this process depends on; None for nothing.
    """
    try:
        yield
    except tf.errors.OpError as error:
        aborted = peers == "workers" and "Collective ops is aborted" in error.message
        if peers is None or not (aborted or is_loss_of_peer(error)):
            raise
        # The first line of the innermost reason: they are quoted in one another.
        reasons = error.message.rpartition("aborted by:")[2].replace(r"\n", "\n").split("\n")
        reason = reasons[0].strip()
        if peers == "TPU":
            raise GroupError(
                f"the TPU is gone or cannot be reached ({type(error).__name__}: {reason}); run the "
                f"same command again: it resumes from the last checkpoint"
            ) from None
        raise GroupError(
            f"another worker ended or cannot be reached ({reason}); start all workers again: they "
            f"resume from the last checkpoint"
        ) from None


@contextlib.contextmanager
def out_of_memory_reported(cause: str, advice: str) -> Iterator[None]:
    """Turns a lack of memory into a UserError with its cause and what to try."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        # A line of a traceback may name a folder called memory.
        lines = [line for line in error.message.splitlines() if not line.strip().startswith("File")]
        reason = next((text for text in lines if "OOM" in text or "memory" in text.lower()), None)
        if reason is None:  # another resource, such as open files
            raise
        raise UserError(f"out of memory with {cause}: {advice} ({reason.strip()[:200]})") from None


def training_memory_advice(
    config: Config, num_replicas: int, fits: int | None = None
) -> tuple[str, str]:
    """Returns what a train step needs its memory for, and what to try if there is too little.

    Args:
        fits: the images at a time that fit, if known.
    """
    size, accumulation = config.data.global_batch_size, config.accumulation_steps
    replica_size = size // num_replicas
    cause = (
        f"{replica_size // accumulation} images at a time (data.global_batch_size {size} / "
        f"{num_replicas} replica(s) / accumulation_steps {accumulation})"
    )
    most = replica_size if fits is None else fits
    if fits is not None and accumulation == 1:
        most = fits // 2  # parts take up to twice what a batch of their size does
    more = [
        n
        for n in range(accumulation + 1, replica_size + 1)
        if replica_size % n == 0 and replica_size // n <= most
    ]
    advice = [_smaller_batch(config, num_replicas, fits)]
    if more:
        advice.insert(0, f"accumulation_steps={more[0]} (the same step in parts)")
    if config.precision == "float32":
        advice.append("precision=mixed_bfloat16")
    return cause, f"try, with --set and a new --workdir, {', or '.join(advice)}"


def _smaller_batch(config: Config, num_replicas: int, fits: int | None) -> str:
    if fits is None:
        return "a smaller data.global_batch_size or data.image_size"
    replica_size = fits * config.accumulation_steps
    while config.augment.mixes and replica_size % 2:  # images are mixed in pairs
        replica_size -= config.accumulation_steps
    if replica_size <= 0:
        return "a smaller model or data.image_size (not one image fits)"
    return (
        f"data.global_batch_size={replica_size * num_replicas} (the largest that fits) or a "
        f"smaller data.image_size"
    )


@contextlib.contextmanager
def bad_examples_reported(
    config: Config, first_bad: Callable[[], str | None], has_checkpoint: Callable[[], bool]
) -> Iterator[None]:
    """Turns an error of the input into a UserError that names the bad example.

    Args:
        first_bad: finds the first bad example and returns its place and what is wrong with it, or
            None if there is none and the error has another cause.
        has_checkpoint: whether the run would be refused on other data.
    """
    try:
        yield
    except _INPUT_ERRORS:
        found = first_bad()
        if found is None:
            raise
        advice = "fix or remove it, or continue with --set data.on_bad_example=skip"
        if has_checkpoint():
            advice = (
                "fix it, or continue with --set data.on_bad_example=skip; removing it changes the "
                "data, which needs another --workdir"
            )
        if config.data.on_bad_example == "skip":
            advice = "all examples tried in its place are bad, too: check the data"
        raise UserError(f"bad example: {found}; {advice}") from None
