"""Learning-rate schedules: pure functions of the step."""

import math
from collections.abc import Callable

import tensorflow as tf

from trainer.config import Config

Schedule = Callable[[tf.Tensor], tf.Tensor]


def make_schedule(config: Config, steps_per_epoch: float, total_steps: int) -> Schedule:
    """Returns the learning rate as a function of the step: `int64 scalar -> float32 scalar`.

    Warm-up is linear, from `1 / warmup_steps` of the peak to the peak. After it, `cosine` falls
    from the peak to 0 at `total_steps` (Loshchilov & Hutter 2017, eq. 5, without restarts), `step`
    multiplies the rate by `milestone_factor` at each milestone, and `constant` keeps it.
    """
    optimizer = config.optimizer
    warmup_steps = optimizer.warmup_epochs * steps_per_epoch

    def schedule(step: tf.Tensor) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        rate = tf.constant(optimizer.learning_rate)
        if optimizer.schedule == "cosine":
            done = (step - warmup_steps) / max(total_steps - warmup_steps, 1.0)
            rate *= 0.5 * (1.0 + tf.cos(math.pi * tf.clip_by_value(done, 0.0, 1.0)))
        elif optimizer.schedule == "step":
            passed = sum(
                tf.cast(step >= epoch * steps_per_epoch, tf.float32)
                for epoch in optimizer.milestones
            )
            rate *= tf.pow(optimizer.milestone_factor, passed)
        if warmup_steps:
            rate *= tf.minimum((step + 1.0) / warmup_steps, 1.0)
        return rate

    return schedule
