"""Batches for each replica, as tf.data: a pure function of the step, for any number of workers."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data.order import shuffled_indices
from trainer.data.source import Source
from trainer.data.transform import eval_images, train_images


def train_dataset(
    config: Config, source: Source, start_step: int, context: tf.distribute.InputContext
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

    def batch(element: tf.Tensor):
        step, replica = element // local_replicas, first_replica + element % local_replicas
        start = step * global_batch_size + replica * per_replica_batch_size
        positions = start + tf.range(per_replica_batch_size, dtype=tf.int64)
        images, labels = source.fetch(shuffled_indices(positions, len(source), config.seed))
        return train_images(images, positions, config, source.channels), labels

    # Without an end: of one that has an end, all workers would ask each other at each step whether
    # they have reached it.
    elements = tf.data.Dataset.counter(start_step * local_replicas)
    batches = elements.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return _without_sharding(batches.prefetch(tf.data.AUTOTUNE))


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
    size = config.data.global_batch_size
    positions = step * size + tf.range(size, dtype=tf.int64)
    return shuffled_indices(positions, len(source), config.seed).numpy()


def eval_steps(config: Config, source: Source, num_replicas: int) -> int:
    """How many eval batches hold every example once."""
    return math.ceil(len(source) / (_eval_rows(config, num_replicas) * num_replicas))


def eval_dataset(
    config: Config, source: Source, context: tf.distribute.InputContext
) -> tf.data.Dataset:
    """All examples in order: `(images, labels, weights)` for each replica.

    The last batch is padded with the last example at weight 0.0; an example's own is 1.0.
    """
    rows = _eval_rows(config, context.num_replicas_in_sync)
    local_replicas = context.num_replicas_in_sync // context.num_input_pipelines
    first_replica = context.input_pipeline_id * local_replicas
    num_steps = eval_steps(config, source, context.num_replicas_in_sync)

    def batch(element: tf.Tensor):
        step, replica = element // local_replicas, first_replica + element % local_replicas
        start = (step * context.num_replicas_in_sync + replica) * rows
        positions = start + tf.range(rows, dtype=tf.int64)
        images, labels = source.fetch(tf.minimum(positions, len(source) - 1))
        weights = tf.cast(positions < len(source), tf.float32)
        return eval_images(images, config, source.channels), labels, weights

    elements = tf.data.Dataset.range(num_steps * local_replicas)
    batches = elements.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return _without_sharding(batches.prefetch(tf.data.AUTOTUNE))


def _eval_rows(config: Config, num_replicas: int) -> int:
    return math.ceil(config.data.eval_batch_size / num_replicas)


def _without_sharding(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.deterministic = True
    return dataset.with_options(options)
