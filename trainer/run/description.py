"""A run in one line, for the person who watches it."""

import math

import tensorflow as tf

from trainer.config import Config
from trainer.data.splits.split import Split
from trainer.step.state import TrainState


def describe(
    config: Config,
    strategy: tf.distribute.Strategy,
    state: TrainState,
    train: Split,
    evaluation: Split | None,
) -> str:
    """Returns the model, its size, the data, the strategy and the batch size as one line."""
    trained = sum(math.prod(v.shape) for v in state.model.trainable_variables)
    parameters = sum(math.prod(v.shape) for v in state.model.variables if v.trainable)
    frozen = f", {trained:,} of them trained" if trained != parameters else ""
    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    kind = "MultiWorkerMirroredStrategy" if several else type(strategy).__name__.rstrip("V12")
    evaluated = "no evaluation: data.eval_split is none, and the best checkpoint is the last"
    if evaluation is not None:
        evaluated = f"{evaluation.num_examples:,} to evaluate"
    return (
        f"{config.model.name} ({parameters:,} parameters{frozen}, {config.precision}) on "
        f"{config.data.name} ({train.num_examples:,} to train, {evaluated}), "
        f"{kind} with {strategy.num_replicas_in_sync} "
        f"replica(s), global batch {config.data.global_batch_size}"
    )
