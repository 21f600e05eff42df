"""All that computes a train step, built together: one function for training, tests, benchmarks and
preflight."""

from typing import Any, NamedTuple

import tensorflow as tf

from trainer.config import Config
from trainer.step.schedules import make_schedule
from trainer.step.state import TrainState
from trainer.step.train_step import CompiledPart, ReplicaStep, make_replica_step, make_train_loop


class Training(NamedTuple):
    """A state, and the functions that train it."""

    state: TrainState
    replica_step: ReplicaStep  # one replica's step: see make_replica_step
    train_loop: Any  # the compiled loop over steps and replicas: see make_train_loop


def build_training(
    config: Config,
    strategy: tf.distribute.Strategy,
    channels: int,
    steps_per_epoch: float,
    total_steps: int,
    compiled: CompiledPart = "nothing",
) -> Training:
    """Builds the state under the strategy's scope, and its train loop. Nothing is traced yet.

    Args:
        channels: of the images, 1 or 3.
        steps_per_epoch: converts the schedule's epochs to steps.
        total_steps: the step at which the schedule ends.

    Raises:
        UserError: for settings that the model does not have.
    """
    with strategy.scope():
        state = TrainState(config, channels)
    schedule = make_schedule(config, steps_per_epoch, total_steps)
    step = make_replica_step(
        config, strategy.num_replicas_in_sync, state, schedule, compiled=compiled
    )
    return Training(state, step, make_train_loop(strategy, state, step))
