"""Batches for each replica, as tf.data: a pure function of the step, for any number of workers."""

import math
import os
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data.examples import Loader, OnBad
from trainer.data.images import decode_eval, decode_train, resize
from trainer.data.order import epoch_indices
from trainer.data.source import Source
from trainer.data.transform import augment_batch

# Threads that read: most of the time they wait for a disk or a network.
_READ_THREADS = 32


def train_dataset(
    config: Config,
    source: Source,
    start_step: int,
    context: tf.distribute.InputContext,
    on_bad: OnBad | None = None,
) -> tf.data.Dataset:
    """The batches of one worker for all steps from `start_step` on: `(images, labels)`.

    One element is one replica's part of one global batch; a worker's replicas take turns. Replica
    `r` of all has the rows `r * per_replica_batch_size` and following of the global batch. Batches
    run across the ends of epochs: training never pads.
    """
    global_batch_size = config.data.global_batch_size
    per_replica_batch_size = global_batch_size // context.num_replicas_in_sync
    local_replicas = context.num_replicas_in_sync // context.num_input_pipelines
    first_replica = context.input_pipeline_id * local_replicas

    def rows(element: tf.Tensor):
        step, replica = element // local_replicas, first_replica + element % local_replicas
        start = step * global_batch_size + replica * per_replica_batch_size
        positions = start + tf.range(per_replica_batch_size, dtype=tf.int64)
        return epoch_indices(config, len(source), positions), positions

    # Without an end: of one that has an end, all workers would ask each other at each step whether
    # they have reached it.
    elements = tf.data.Dataset.counter(start_step * local_replicas).map(rows)
    batches = _load(elements, _train_loader(config, source), per_replica_batch_size, on_bad)

    def augmented(images, labels, good, indices, positions):
        del good, indices
        return augment_batch(images, labels, positions, config)

    batches = batches.map(augmented, num_parallel_calls=tf.data.AUTOTUNE)
    return _with_options(batches.prefetch(tf.data.AUTOTUNE))


def eval_dataset(
    config: Config,
    source: Source,
    context: tf.distribute.InputContext,
    on_bad: OnBad | None = None,
) -> tf.data.Dataset:
    """All examples in order: `(images, labels, weights)` for each replica.

    The last batch is padded with the last example at weight 0.0; an example's own is 1.0, and that
    of a bad one that is skipped 0.0.
    """
    batch_size = _eval_rows(config, context.num_replicas_in_sync)
    local_replicas = context.num_replicas_in_sync // context.num_input_pipelines
    first_replica = context.input_pipeline_id * local_replicas
    num_steps = eval_steps(config, source, context.num_replicas_in_sync)

    def rows(element: tf.Tensor):
        step, replica = element // local_replicas, first_replica + element % local_replicas
        start = (step * context.num_replicas_in_sync + replica) * batch_size
        positions = start + tf.range(batch_size, dtype=tf.int64)
        return tf.minimum(positions, len(source) - 1), positions

    elements = tf.data.Dataset.range(num_steps * local_replicas).map(rows)
    batches = _load(elements, _eval_loader(config, source), batch_size, on_bad)

    def weighted(images, labels, good, indices, positions):
        del indices
        return images, labels, tf.cast(good & (positions < len(source)), tf.float32)

    return _with_options(batches.map(weighted).prefetch(tf.data.AUTOTUNE))


def _load(elements: tf.data.Dataset, loader: Loader, batch_size: int, on_bad: OnBad | None):
    """From batches of `(indices, positions)` to those of `(images, labels, good, indices,
    positions)`, in the same order; images are uint8 of the model's size."""
    config, source = loader.config, loader.source

    def fetch(indices: tf.Tensor, positions: tf.Tensor):
        images, labels = loader.fetch(indices)
        return images, labels, tf.ones_like(labels, tf.bool), indices, positions

    def decode(image, label, good, index, position):
        return loader.decode(image, position), label, good, index, position

    def load_or_replace(index: tf.Tensor, position: tf.Tensor):
        return (*loader.load_or_replace(index, position, on_bad), index, position)

    def resized(images, *others):
        return (resize(images, config.data.image_size), *others)

    in_parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    if config.data.on_bad_example == "skip":
        examples = elements.unbatch().map(load_or_replace, **in_parallel)
        return examples.batch(batch_size, drop_remainder=True)
    batches = elements.map(fetch, **in_parallel)
    if source.image_shape is not None:
        return batches.map(resized, **in_parallel)
    # Images of any size are decoded one by one: a batch at a time, as many batches as there are
    # cores would be in memory, half done.
    return batches.unbatch().map(decode, **in_parallel).batch(batch_size, drop_remainder=True)


def _train_loader(config: Config, source: Source) -> Loader:
    def decode(image: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        if image.dtype != tf.string:
            return resize(image, config.data.image_size)
        return decode_train(image, position, config, source.channels)

    return Loader(config, source, decode)


def _eval_loader(config: Config, source: Source) -> Loader:
    def decode(image: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        del position
        if image.dtype != tf.string:
            return resize(image, config.data.image_size)
        return decode_eval(image, config, source.channels)

    return Loader(config, source, decode)


def distribute(
    strategy: tf.distribute.Strategy,
    make_dataset: Callable[[tf.distribute.InputContext], tf.data.Dataset],
) -> Iterable:
    """What the loops of steps.py iterate over: elements for each replica of this worker.

    To a single replica on a CPU, tf.data hands its elements itself: through the iterator that feeds
    devices, each would cost 0.2 ms more.
    """
    (device, *others) = strategy.extended.worker_devices
    if strategy.num_replicas_in_sync == 1 and not others and "CPU" in device:
        return make_dataset(tf.distribute.InputContext())
    return strategy.distribute_datasets_from_function(make_dataset)


def batch_indices(config: Config, source: Source, step: int) -> np.ndarray:
    """Which examples the global batch of a step, counted from 0, has: int64
    `[global_batch_size]`."""
    return epoch_indices(config, len(source), _positions(config, step, 1)).numpy()


def _positions(config: Config, step: int, num_steps: int) -> tf.Tensor:
    size = config.data.global_batch_size
    return step * size + tf.range(num_steps * size, dtype=tf.int64)


def first_bad_in_training(config: Config, source: Source, step: int, num_steps: int) -> str | None:
    """Where the first bad example of these steps is, and what is wrong with it."""
    positions = _positions(config, step, num_steps)
    indices = epoch_indices(config, len(source), positions)
    return _train_loader(config, source).first_bad(indices.numpy(), positions.numpy())


def first_bad_in_evaluation(config: Config, source: Source) -> str | None:
    """The same of all examples of a split that is evaluated."""
    every = np.arange(len(source), dtype=np.int64)
    return _eval_loader(config, source).first_bad(every, every)


def eval_steps(config: Config, source: Source, num_replicas: int) -> int:
    """How many eval batches hold every example once."""
    return math.ceil(len(source) / (_eval_rows(config, num_replicas) * num_replicas))


def _eval_rows(config: Config, num_replicas: int) -> int:
    return math.ceil(config.data.eval_batch_size / num_replicas)


def _with_options(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.deterministic = True
    # Of their own, so that a step never waits for a thread that waits for a disk.
    options.threading.private_threadpool_size = max(_READ_THREADS, os.cpu_count() or 1)
    return dataset.with_options(options)
