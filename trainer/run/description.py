"""A run in one line, for the person who watches it."""

import math

import tensorflow as tf

from trainer.config import Config
from trainer.step.state import TrainState


def describe(
    config: Config,
    strategy: tf.distribute.Strategy,
    state: TrainState,
    num_train: int,
    num_eval: int,
) -> str:
    """Returns the model, its size, the data, the strategy and the batch size as one line."""
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
