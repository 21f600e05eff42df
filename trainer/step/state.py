"""The state of a run: the contents of a checkpoint, and everything that resuming needs."""

import tensorflow as tf
import tf_keras

from trainer.config import MAX_ROLLBACKS, Config
from trainer.models.build import build_model
from trainer.models.stages import learning_rate_factors
from trainer.step.optim import Optimizer, make_optimizer


class TrainState(tf.Module):
    """Model, optimizer, moving average, loss scale, and the progress of the run.

    Every variable is mirrored: each replica writes the same value to its copy. A checkpoint reads
    the first copy, and restoring it writes all.

    Attributes:
        ema_model: a second model, with the exponential moving average of the first one's weights
            *and* batch norm statistics, or None. Since it is a separate model, evaluating it
            cannot touch the weights in training.
        loss_scale: multiplies the loss in float16, or None; `good_steps` counts the finite steps
            since it changed.
        global_step: the number of steps done, including skipped ones, whose data are used up.
        applied_steps: the number of steps whose update was applied.
        rollbacks: how often the run rolled back after a divergence. `rate_factor` is the resulting
            factor of the learning rate, and `left_out` `[MAX_ROLLBACKS]` the steps, counted from 0,
            whose batches are not applied (-1: none).
    """

    def __init__(self, config: Config, channels: int):
        """Builds the state. Called under the strategy's scope."""
        super().__init__()
        self.model: tf_keras.Model = build_model(config, channels)
        self.ema_model: tf_keras.Model | None = None
        if config.ema_decay is not None:
            self.ema_model = build_model(config, channels)  # the same weights, by the same seed
        self.optimizer: Optimizer = make_optimizer(
            config.optimizer,
            self.model.trainable_variables,
            learning_rate_factors(config, self.model),
        )
        self.loss_scale: tf.Variable | None = None
        if config.precision == "mixed_float16":
            self.loss_scale = tf.Variable(config.initial_loss_scale, trainable=False)
        self.good_steps = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.applied_steps = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.global_step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.rollbacks = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.rate_factor = tf.Variable(1.0, trainable=False)
        self.left_out = tf.Variable(
            tf.fill([MAX_ROLLBACKS], tf.constant(-1, tf.int64)), trainable=False
        )
