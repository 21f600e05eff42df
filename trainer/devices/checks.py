"""Checks of a config against the devices of a strategy."""

import math

import tensorflow as tf

from trainer.config import Config
from trainer.data.order import epoch_size
from trainer.errors import UserError


def check_batch_size(config: Config, num_replicas: int) -> None:
    """Checks that each replica and micro-batch gets whole images, and pairs of them for mixing.

    Raises:
        UserError: if not, with the nearest batch size that does.
    """
    size, accumulation = config.data.global_batch_size, config.accumulation_steps
    parts = _least_batch(config, num_replicas)
    if size % parts == 0:
        return
    pairs = ""
    if config.augment.mixes:
        pairs = ", with an even number of images for each replica for mixup and CutMix to pair"
    raise UserError(
        f"data.global_batch_size ({size}) must be divisible by the number of replicas "
        f"({num_replicas}) times accumulation_steps ({accumulation}){pairs}: the nearest is "
        f"--set data.global_batch_size={max(1, round(size / parts)) * parts}"
    )


def check_batch_in_epoch(config: Config, num_replicas: int, num_examples: int) -> None:
    """Checks that an epoch of this many training examples holds at least one batch.

    Raises:
        UserError: if not, with the largest batch size that `check_batch_size` accepts.
    """
    size, repeats = config.data.global_batch_size, config.data.repeats
    images, least = epoch_size(config, num_examples), _least_batch(config, num_replicas)
    if size <= images:
        return
    times = f" times data.repeats ({repeats})" if repeats > 1 else ""
    advice = f"the largest is --set data.global_batch_size={images // least * least}"
    if images < least:
        advice = (
            f"the least for {num_replicas} replica(s) times accumulation_steps "
            f"({config.accumulation_steps}) is {least}: use fewer of them, or more examples"
        )
    raise UserError(
        f"data.global_batch_size ({size:,}) is more than an epoch has: {num_examples:,} training "
        f"examples{times}; {advice}"
    )


def _least_batch(config: Config, num_replicas: int) -> int:
    """Returns the number that divides every batch size that `check_batch_size` accepts."""
    parts = num_replicas * config.accumulation_steps
    return math.lcm(parts, 2 * num_replicas) if config.augment.mixes else parts


def check_placement(strategy: tf.distribute.Strategy, config: Config, in_graph: bool) -> None:
    """Checks that the input can run on a TPU slice's remote hosts, which run no Python.

    Raises:
        UserError: for a source or setting that needs Python there. Tested with a stand-in for the
            slice.
    """
    is_slice = isinstance(strategy, tf.distribute.TPUStrategy) and strategy.extended.num_hosts > 1
    if is_slice and not in_graph:
        raise UserError(
            f"data.name={config.data.name}: is read by Python, which the "
            f"{strategy.extended.num_hosts} hosts of this TPU slice do not run: prepare the data "
            f"as TFRecord (TFDS with --file_format=tfrecord, or python -m trainer.prepare)"
        )
    if is_slice and config.data.on_bad_example == "skip":
        raise UserError(
            f"data.on_bad_example=skip: reports bad examples by Python, which the "
            f"{strategy.extended.num_hosts} hosts of this TPU slice do not run: verify the data "
            f"with python -m trainer.prepare, and set it to fail"
        )


def check_tpu(config: Config) -> None:
    """Raises UserError for settings that no TPU supports."""
    if config.xla == "off":
        raise UserError("xla is 'off', but TPUs run only code that XLA compiled: --set xla=auto")
    if config.precision == "mixed_float16":
        raise UserError(
            "precision is 'mixed_float16', which TPUs do not support: --set "
            "precision=mixed_bfloat16"
        )
