"""The training, from top to bottom."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data.bad_examples import BadExamples
from trainer.data.order import epoch_size
from trainer.data.pipeline import (
    distribute,
    eval_dataset,
    eval_steps,
    first_bad_in_evaluation,
    first_bad_in_training,
    train_dataset,
)
from trainer.data.source import open_source
from trainer.devices.strategy import (
    check_batch_size,
    check_placement,
    checkpoint_device,
    choose_compilation,
)
from trainer.errors import DivergedError, PreemptedError, UserError
from trainer.models.weights.load import load_weights
from trainer.run import divergence
from trainer.run.checkpoint import Checkpoints, run_metadata
from trainer.run.folder import RunFolder
from trainer.run.log import RunLog, read_records
from trainer.run.stopwatch import Stopwatch
from trainer.step.optim import make_schedule
from trainer.step.state import TrainState
from trainer.step.train_step import TrainMetrics, make_agreement, make_eval_loop, make_train_loop

# What TensorFlow raises where a file or what is in it is bad.
_INPUT_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,
    tf.errors.DataLossError,
    tf.errors.OutOfRangeError,
    tf.errors.UnknownError,
)
# A signal is served between two loops, and clouds give 30 s from the signal to the kill: `auto`
# aims at loops of 2 s, well under 5 s also where a machine's speed wavers.
_LOOP_SECONDS = 2.0


class Summary(NamedTuple):
    """How a run ended."""

    best_accuracy: float
    last_accuracy: float
    images_per_second: float  # of this process's training, without the first loop's tracing
    train_seconds: float  # of this process's train loops, without evaluation and checkpoints


def train_and_evaluate(
    config: Config,
    strategy: tf.distribute.Strategy,
    folder: RunFolder,
    data_dir: str,
    stopwatch: Stopwatch | None = None,
) -> Summary:
    """Trains what `config` says, going on where `folder` stands, to the end.

    Args:
        stopwatch: started with the process, to tell how long it took to the first step.

    Raises:
        UserError: for a mistake in the config, the data or the environment.
        PreemptedError: after SIGTERM or Ctrl-C, with everything saved.
        DivergedError: on a loss or gradient that is not finite; the last checkpoint is kept.
    """
    stopwatch = stopwatch or Stopwatch()
    # 1. Signals, first of all: from here on, one saves before it ends the run.
    stop = _StopRequest()

    # 2. Data, before the model: they answer sooner when something is wrong with them.
    num_replicas = strategy.num_replicas_in_sync
    check_batch_size(config, num_replicas)
    compilation = choose_compilation(config, strategy)
    train_source = open_source(config, config.data.train_split, data_dir)
    eval_source = open_source(config, config.data.eval_split, data_dir)
    check_placement(strategy, config, train_source.in_graph and eval_source.in_graph)
    steps_per_epoch = epoch_size(config, len(train_source)) / config.data.global_batch_size
    total_steps = max(1, round(config.num_epochs * steps_per_epoch))

    stopwatch.lap("data")

    # 3. State, new or where the last process left it.
    with strategy.scope():
        state = TrainState(config, train_source.channels)
    metadata = run_metadata(config, train_source)
    checkpoints = Checkpoints(
        folder.checkpoints,
        state,
        metadata,
        config.keep_checkpoints,
        folder.is_chief,
        checkpoint_device(strategy),
    )
    agree = make_agreement(strategy)
    _check_agreement(agree, 0, len(train_source), len(eval_source))  # before one refuses them alone
    restored = checkpoints.restore()
    step = restored or 0
    _check_agreement(agree, step, len(train_source), len(eval_source))
    loaded = _load_weights(config, state, agree, is_new=restored is None)
    if folder.is_chief:
        folder.write_config(metadata)
    log = RunLog(folder, step, total_steps, steps_per_epoch)
    log.say(_describe(config, strategy, state, len(train_source), len(eval_source)))
    log.say(compilation.reason)
    log.say(f"logs and checkpoints: {folder.path}")
    log.say(f"from step {step} of {total_steps}" if step else f"{total_steps} steps{loaded}")
    if step == 0 and config.on_divergence == "rollback":
        checkpoints.save(0)  # to go back to, before there is another one
    stopwatch.lap("build")

    # 4. Input from this step on, and the compiled loops.
    bad_examples = BadExamples(folder.path, lambda text: log.say(text))  # noqa: PLW0108  # rebound after a rollback

    def input_from(step: int) -> Iterator:
        at_step = _at_size(config, step, steps_per_epoch)
        return iter(
            distribute(
                strategy,
                lambda context: train_dataset(
                    at_step, train_source, step, context, bad_examples.reporter(context)
                ),
            )
        )

    iterator = input_from(step)
    schedule = make_schedule(config, steps_per_epoch, total_steps)
    train_loop = make_train_loop(config, strategy, state, schedule, compilation.compiled)
    evaluate = _make_evaluate(config, strategy, state, eval_source, bad_examples)
    if step < total_steps:
        train_loop.get_concrete_function(iterator, tf.constant(1))
    stopwatch.lap("trace")

    # 5. Train, loop by loop. At each loop's end: write, evaluate when due, save when due, in this
    # order, so that a checkpoint never counts a step as done whose record may be lost.
    loop_steps = config.steps_per_loop if config.steps_per_loop != "auto" else 1
    pace = _Pace()
    last_save = time.monotonic()
    while step < total_steps:
        next_eval = _next_eval(step, config.eval_every_epochs * steps_per_epoch, total_steps)
        next_size = _next_size(config, step, steps_per_epoch)
        num_steps = min(loop_steps, next_eval - step, next_size - step)
        started = time.monotonic()
        # The count is a tensor, so that all lengths share one trace. numpy() waits for the device,
        # so that an error of one loop, as a lack of memory, is not another one's.
        with (
            _explained(*_memory_advice(config, num_replicas)),
            _naming(config, partial(first_bad_in_training, config, train_source, step, num_steps)),
        ):
            metrics = train_loop(iterator, tf.constant(num_steps))
            metrics = TrainMetrics(*(values.numpy() for values in metrics))
        seconds = time.monotonic() - started
        step += num_steps
        if not pace.seconds:
            stopwatch.lap("first loop, with compiling")
            log.say(f"from the command to here: {stopwatch}")
            log.event("startup", step - num_steps, stopwatch.laps)
        traces = train_loop.experimental_get_tracing_count()
        pace.add(num_steps, seconds, traces)
        images_per_second = num_steps * config.data.global_batch_size / seconds
        log.train(step, metrics, seconds, images_per_second, traces)

        found = divergence.find(config, state, train_source, step, metrics)
        if found is not None:
            log.event("divergence", found.step, found._asdict())
            log.close()
            step = _after_divergence(config, state, checkpoints, found)
            _check_agreement(agree, step, len(train_source), len(eval_source))
            log = RunLog(folder, step, total_steps, steps_per_epoch)
            log.say(f"diverged: {found}; going on from step {step}, without that batch")
            iterator = input_from(step)
            continue

        # Clocks and signals differ between workers, and what follows must not.
        save_due = time.monotonic() - last_save >= config.checkpoint_every_s
        stop_sum, save_sum, seconds = agree([float(stop.requested), float(save_due), seconds])

        if step == next_eval:
            with (
                _explained(f"data.eval_batch_size ({config.data.eval_batch_size})", "lower it"),
                _naming(config, partial(first_bad_in_evaluation, config, eval_source)),
            ):
                values = evaluate()
            log.evaluation(step, values)
            accuracy = max(v for name, v in values.items() if name.endswith("top1_accuracy"))
            if accuracy > state.best_accuracy.numpy():
                state.best_accuracy.assign(accuracy)
                log.flush()
                checkpoints.save_best(step)
        if stop_sum > 0 or save_sum > 0 or step == total_steps:
            log.flush()
            checkpoints.save(step)
            last_save = time.monotonic()
        if stop_sum > 0 and step < total_steps:
            log.close()
            del iterator
            raise PreemptedError(f"saved at step {step} of {total_steps}")
        if step == next_size:
            iterator = input_from(step)
        if config.steps_per_loop == "auto":
            loop_steps = _loop_steps(loop_steps, num_steps, seconds)

    log.close()
    del iterator  # before its dataset and its devices: in another order it was seen to take 40 s
    last = read_records(folder.metrics, "eval")[-1:]
    return Summary(
        best_accuracy=float(state.best_accuracy.numpy()),
        last_accuracy=last[0]["top1_accuracy"] if last else math.nan,
        images_per_second=pace.steps_per_second * config.data.global_batch_size,
        train_seconds=pace.seconds,
    )


def _load_weights(config: Config, state: TrainState, agree, is_new: bool) -> str:
    """What a new run starts from, where it is not random; and a text that says so.

    Raises:
        UserError: on all workers, where one cannot load them, or has others.
    """
    if config.model.weights is None:
        return ""
    loaded, failure = "", None
    try:
        loaded = f"\n{load_weights(config, state.model)}" if is_new else ""
    except UserError as error:
        failure = error
    total = sum(float(np.abs(v.numpy()).sum(dtype=np.float64)) for v in state.model.variables)
    failed, mean = agree([float(failure is not None), total])
    if failure is not None:
        raise failure
    if failed or max(agree([abs(total - mean)])) > 1e-9 * mean:
        raise UserError(
            f"model.weights ({config.model.weights}): another worker cannot load it, or has "
            f"another file of this name; it must be the same for all"
        )
    if state.ema_model is not None and is_new:
        for average, value in zip(state.ema_model.variables, state.model.variables, strict=True):
            average.assign(value)
    return loaded


def _at_size(config: Config, step: int, steps_per_epoch: float) -> Config:
    """The config with the image size of this step."""
    for size, epoch in zip(config.data.train_sizes, config.data.train_size_epochs, strict=True):
        if step < round(epoch * steps_per_epoch):
            data = dataclasses.replace(config.data, image_size=size)
            return dataclasses.replace(config, data=data)
    return config


def _next_size(config: Config, step: int, steps_per_epoch: float) -> float:
    """The step from which on images have another size; infinity where there is none."""
    ends = (round(epoch * steps_per_epoch) for epoch in config.data.train_size_epochs)
    return next((end for end in ends if end > step), math.inf)


class _StopRequest:
    """Set by SIGTERM (a preemption) and SIGINT (Ctrl-C); a second Ctrl-C ends it at once."""

    def __init__(self):
        self.requested = False
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        del frame
        self.requested = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # In `trainer | tee log`, Ctrl-C ends tee as well: what cannot be told must not end the run.
        with contextlib.suppress(OSError, RuntimeError):
            print("stopping after this loop; Ctrl-C stops at once, unsaved", flush=True)


class _Pace:
    """Steps per second, without the loops that hold tracing and compiling: the first, and the first
    of each image size."""

    def __init__(self):
        self.seconds = 0.0
        self._traces = self._steps = 0
        self._timed_seconds = 0.0

    def add(self, num_steps: int, seconds: float, traces: int) -> None:
        if self.seconds and traces == self._traces:
            self._steps += num_steps
            self._timed_seconds += seconds
        self.seconds += seconds
        self._traces = traces

    @property
    def steps_per_second(self) -> float:
        return self._steps / self._timed_seconds if self._steps else math.nan


def _check_agreement(agree, *numbers: int) -> None:
    """Workers that start from other steps, or see other data, would wait for each other for ever.

    Raises:
        UserError: on all workers, where the numbers of one are not those of the others.
    """
    means = agree([float(number) for number in numbers])
    deviations = [(number - mean) ** 2 for number, mean in zip(numbers, means, strict=True)]
    if max(agree(deviations)) > 1e-6:
        raise UserError(
            f"the workers do not start from the same: this one is at step {numbers[0]}, with "
            f"{numbers[1]} examples to train on and {numbers[2]} to evaluate; --workdir must be on "
            f"storage that all workers see, and --data_dir must hold the same data for all"
        )


@contextlib.contextmanager
def _explained(cause: str, advice: str):
    """A lack of memory, told with what the user can do about it."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        lines = error.message.splitlines()
        reason = next((text for text in lines if "OOM" in text or "memory" in text.lower()), None)
        if reason is None:  # as: too many open files
            raise
        raise UserError(f"out of memory with {cause}: {advice} ({reason.strip()[:200]})") from None


@contextlib.contextmanager
def _naming(config: Config, first_bad: Callable[[], str | None]):
    """A bad example, told with where it is."""
    try:
        yield
    except _INPUT_ERRORS:
        found = first_bad()
        if found is None:  # not an example's
            raise
        advice = (
            "mend it, or go on with --set data.on_bad_example=skip; removing it makes other data, "
            "which need another --workdir"
        )
        if config.data.on_bad_example == "skip":
            advice = "so are all that were tried in its place: look at the data"
        raise UserError(f"bad example: {found}; {advice}") from None


def _memory_advice(config: Config, num_replicas: int) -> tuple[str, str]:
    """What a train step needs its memory for, and what to try where it is too little."""
    size, accumulation = config.data.global_batch_size, config.accumulation_steps
    replica_size = size // num_replicas
    cause = (
        f"{replica_size // accumulation} images at a time (data.global_batch_size {size} / "
        f"{num_replicas} replica(s) / accumulation_steps {accumulation})"
    )
    advice = ["a smaller data.global_batch_size or data.image_size"]
    more = [n for n in range(accumulation + 1, replica_size + 1) if replica_size % n == 0]
    if more:
        advice.insert(0, f"accumulation_steps={more[0]} (the same step in parts)")
    if config.precision == "float32":
        advice.append("precision=mixed_bfloat16")
    return cause, f"try, by --set and in a new --workdir, {', or '.join(advice)}"


def _after_divergence(config: Config, state: TrainState, checkpoints: Checkpoints, found) -> int:
    """Goes back, as `on_divergence` says, and returns the step to go on from.

    Raises:
        DivergedError: where the run stops instead.
    """
    count = int(state.rollbacks.numpy())
    if config.on_divergence == "stop":
        raise DivergedError(
            f"{found}; the last checkpoint is kept; lower optimizer.learning_rate or set "
            f"optimizer.clip_norm in a new --workdir, or go on with --set on_divergence=rollback"
        )
    if count >= config.max_rollbacks:
        raise DivergedError(
            f"{found}; the last checkpoint is kept; went back {count} times already "
            f"(max_rollbacks), to {state.rate_factor.numpy():.3g} of the learning rate"
        )
    return divergence.roll_back(config, state, checkpoints, found)


def _describe(config: Config, strategy, state: TrainState, num_train: int, num_eval: int) -> str:
    trained = sum(math.prod(v.shape) for v in state.model.trainable_variables)
    parameters = sum(math.prod(v.shape) for v in state.model.variables if v.trainable)
    frozen = f", {trained:,} of them trained" if trained != parameters else ""
    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    kind = "MultiWorkerMirroredStrategy" if several else type(strategy).__name__.rstrip("V12")
    return (
        f"{config.model.name} ({parameters:,} parameters{frozen}, {config.precision}) on "
        f"{config.data.name} ({num_train:,} to train, {num_eval:,} to evaluate), "
        f"{kind} with {strategy.num_replicas_in_sync} "
        f"replica(s), global batch {config.data.global_batch_size}"
    )


def _next_eval(step: int, interval: float, total_steps: int) -> int:
    """The first step after `step` that ends an interval, or the last step. At least one step on."""
    interval = max(interval, 1.0)
    count = math.floor(step / interval) + 1
    while round(count * interval) <= step:
        count += 1
    return min(round(count * interval), total_steps)


def _loop_steps(loop_steps: int, done: int, seconds: float) -> int:
    """The next length of a loop, at most four times the last: the first includes tracing."""
    wanted = done * _LOOP_SECONDS / seconds
    return max(1, min(4 * loop_steps, int(wanted)))


def _make_evaluate(config: Config, strategy, state: TrainState, source, bad_examples: BadExamples):
    """`evaluate()`: the metrics of all examples of `source`, of the weights and of their EMA."""
    dataset = distribute(
        strategy,
        lambda context: eval_dataset(config, source, context, bad_examples.reporter(context)),
    )
    num_steps = tf.constant(eval_steps(config, source, strategy.num_replicas_in_sync))
    models = {"": state.model}
    if state.ema_model is not None:
        models["ema_"] = state.ema_model
    loops = {prefix: make_eval_loop(config, strategy, model) for prefix, model in models.items()}

    def evaluate() -> dict[str, float]:
        values = {}
        for prefix, loop in loops.items():
            loss, top1, top5, count = (float(total) for total in loop(iter(dataset), num_steps))
            # Bad ones that are skipped count as none.
            complete = count == len(source)
            if not complete and not (config.data.on_bad_example == "skip" and count > 0):
                raise AssertionError(f"evaluated {count} examples of {len(source)}")
            values[f"{prefix}top1_accuracy"] = top1 / count
            values[f"{prefix}top5_accuracy"] = top5 / count
            values[f"{prefix}loss"] = loss / count
            if not complete:
                values["bad_examples"] = len(source) - count
        return values

    return evaluate
