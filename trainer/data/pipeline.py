"""Batches for each replica, as tf.data: a pure function of the step, for any number of workers."""

import math
import os
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data.bad_examples import BadExamples
from trainer.data.examples import Loader, OnBad
from trainer.data.images import decode_eval, decode_train
from trainer.data.order import epoch_indices
from trainer.data.source import Source
from trainer.data.transform import augment_batch

# Reading threads: they mostly wait for a disk or a network.
_READ_THREADS = 32
# Images that are read, decoded and augmented as one group, of many in parallel. With whole batches
# as groups, parallelism would be coarse, and memory would hold a batch per core.
_GROUP_SIZE = 16


def train_dataset(
    config: Config,
    source: Source,
    start_step: int,
    context: tf.distribute.InputContext,
    on_bad: OnBad | None = None,
) -> tf.data.Dataset:
    """Returns one worker's batches `(images, labels)` for all steps from `start_step` on.

    One element is one replica's part of one global batch, with the worker's replicas in turn.
    Replica `r` of all has the `per_replica_batch_size` rows from `r * per_replica_batch_size` on.
    Batches run across the ends of epochs: training never pads.

    Returns:
        Images, uint8 `[per_replica_batch_size, image_size, image_size, channels]`; and labels,
        int32 `[per_replica_batch_size]` or, if images are mixed, float32
        `[per_replica_batch_size, classes]`.
    """
    batch_size = config.data.global_batch_size // context.num_replicas_in_sync
    load = _load(_train_loader(config, source), on_bad)

    def group(positions: tf.Tensor):
        images, labels, _ = load(epoch_indices(config, len(source), positions), positions)
        return augment_batch(images, labels, positions, config)

    size = _group_size(batch_size, even=config.augment.mixes)  # mixing needs whole pairs
    # Without an end: at each step, the workers would ask each other whether they have reached it.
    return _batches(group, size, batch_size, context, start_step, num_steps=None)


def eval_dataset(
    config: Config,
    source: Source,
    context: tf.distribute.InputContext,
    on_bad: OnBad | None = None,
) -> tf.data.Dataset:
    """Returns one worker's batches `(images, labels, weights)` of all examples in order.

    The weight, float32 `[per_replica_batch_size]`, is 1.0 for an example, 0.0 for a bad one that is
    skipped, and 0.0 for the last example's copies, which pad the last batch.
    """
    batch_size = _eval_rows(config, source, context.num_replicas_in_sync)
    load = _load(_eval_loader(config, source), on_bad)

    def group(positions: tf.Tensor):
        images, labels, good = load(tf.minimum(positions, len(source) - 1), positions)
        return images, labels, tf.cast(good & (positions < len(source)), tf.float32)

    num_steps = eval_steps(config, source, context.num_replicas_in_sync)
    return _batches(group, _group_size(batch_size), batch_size, context, 0, num_steps)


def _group_size(batch_size: int, even: bool = False) -> int:
    """Returns the largest size of equal groups of a batch, of at most _GROUP_SIZE images."""
    sizes = range(min(_GROUP_SIZE, batch_size), 0, -1)
    return next(n for n in sizes if batch_size % n == 0 and not (even and n % 2))


def _load(loader: Loader, on_bad: OnBad | None):
    """Returns a function of indices and positions, int64 `[n]`, that returns images, uint8
    `[n, size, size, channels]`, labels, int32 `[n]`, and which of them are not replacements, bool
    `[n]`."""
    config, size = loader.config, loader.config.data.image_size

    def load(indices: tf.Tensor, positions: tf.Tensor):
        return *loader.load(indices, positions), tf.ones_like(indices, tf.bool)

    def load_each(indices: tf.Tensor, positions: tf.Tensor):
        return tf.map_fn(
            lambda pair: loader.load_or_replace(*pair, on_bad),
            (indices, positions),
            fn_output_signature=(
                tf.TensorSpec([size, size, loader.source.channels], tf.uint8),
                tf.TensorSpec([], tf.int32),
                tf.TensorSpec([], tf.bool),
            ),
        )

    return load_each if config.data.on_bad_example == "skip" else load


def _batches(
    group: Callable[[tf.Tensor], tuple[tf.Tensor, ...]],
    group_size: int,
    batch_size: int,
    context: tf.distribute.InputContext,
    start_step: int,
    num_steps: int | None,
) -> tf.data.Dataset:
    """Returns one worker's batches from `start_step` on, for each of its replicas in turn.

    Args:
        group: maps the positions of a group, int64 `[group_size]`, to columns `[n, …]`.
        batch_size: per replica; `group_size` divides it.
        num_steps: the steps until the end; None for no end.
    """
    groups = batch_size // group_size
    local_replicas = context.num_replicas_in_sync // context.num_input_pipelines
    first_replica = context.input_pipeline_id * local_replicas
    groups_per_step = local_replicas * groups

    def load(number: tf.Tensor):
        batch, place = number // groups, number % groups
        step, replica = batch // local_replicas, first_replica + batch % local_replicas
        rows = (step * context.num_replicas_in_sync + replica) * batch_size
        return group(rows + place * group_size + tf.range(group_size, dtype=tf.int64))

    def joined(*columns: tf.Tensor):  # [groups, n, …] to [groups * n, …]
        return tuple(
            tf.reshape(column, [groups * column.shape[1], *column.shape[2:]]) for column in columns
        )

    numbers = tf.data.Dataset.counter(start_step * groups_per_step)
    if num_steps is not None:
        numbers = numbers.take(num_steps * groups_per_step)
    elements = numbers.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    elements = elements.batch(groups, drop_remainder=True).map(joined)
    return _with_options(elements.prefetch(tf.data.AUTOTUNE))


def _train_loader(config: Config, source: Source) -> Loader:
    return Loader(
        config,
        source,
        lambda image, position: decode_train(image, position, config, source.channels),
    )


def _eval_loader(config: Config, source: Source) -> Loader:
    return Loader(
        config, source, lambda image, position: decode_eval(image, config, source.channels)
    )


def train_input(
    config: Config,
    strategy: tf.distribute.Strategy,
    source: Source,
    start_step: int = 0,
    bad_examples: BadExamples | None = None,
) -> Iterable:
    """Returns the batches for each replica of this worker, for all steps from `start_step` on."""

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        on_bad = bad_examples.reporter(context) if bad_examples else None
        return train_dataset(config, source, start_step, context, on_bad)

    return distribute(strategy, of_worker)


def eval_input(
    config: Config,
    strategy: tf.distribute.Strategy,
    source: Source,
    bad_examples: BadExamples | None = None,
) -> Iterable:
    """Returns all examples once, in batches for each replica of this worker."""

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        on_bad = bad_examples.reporter(context) if bad_examples else None
        return eval_dataset(config, source, context, on_bad)

    return distribute(strategy, of_worker)


def distribute(
    strategy: tf.distribute.Strategy,
    make_dataset: Callable[[tf.distribute.InputContext], tf.data.Dataset],
) -> Iterable:
    """Returns what the train and eval loops iterate over: elements for each replica of this worker.

    A single replica on a CPU takes its elements straight from tf.data: the iterator that feeds
    devices would cost 0.2 ms per element.
    """
    (device, *others) = strategy.extended.worker_devices
    if strategy.num_replicas_in_sync == 1 and not others and "CPU" in device:
        return make_dataset(tf.distribute.InputContext())
    return strategy.distribute_datasets_from_function(make_dataset)


def batch_indices(config: Config, source: Source, step: int) -> np.ndarray:
    """Returns the indices of a step's examples, int64 `[global_batch_size]`; steps count from 0."""
    return epoch_indices(config, len(source), _positions(config, step, 1)).numpy()


def _positions(config: Config, step: int, num_steps: int) -> tf.Tensor:
    size = config.data.global_batch_size
    return step * size + tf.range(num_steps * size, dtype=tf.int64)


def first_bad_in_training(config: Config, source: Source, step: int, num_steps: int) -> str | None:
    """Returns the place of these steps' first bad example and what is wrong with it, or None."""
    positions = _positions(config, step, num_steps)
    indices = epoch_indices(config, len(source), positions)
    return _train_loader(config, source).first_bad(indices.numpy(), positions.numpy())


def first_bad_in_evaluation(config: Config, source: Source) -> str | None:
    """Returns the place of the split's first bad example and what is wrong with it, or None."""
    every = np.arange(len(source), dtype=np.int64)
    return _eval_loader(config, source).first_bad(every, every)


def eval_steps(config: Config, source: Source, num_replicas: int) -> int:
    """Returns the number of evaluation batches that hold every example once."""
    return math.ceil(len(source) / (_eval_rows(config, source, num_replicas) * num_replicas))


def _eval_rows(config: Config, source: Source, num_replicas: int) -> int:
    """Returns the rows of a replica's evaluation batch: never more than the examples need."""
    return math.ceil(min(config.data.eval_batch_size, len(source)) / num_replicas)


def _with_options(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.deterministic = True
    # Separate threads, so that a step never waits for a thread that waits for a disk.
    options.threading.private_threadpool_size = max(_READ_THREADS, os.cpu_count() or 1)
    return dataset.with_options(options)
