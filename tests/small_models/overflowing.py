"""A `convnet` with a gradient 10^6 times as large for an all-white image.

There, float16 overflows in the backward pass only; the loss stays the same.
"""

import tensorflow as tf
import tf_keras
from tf_keras import layers

from trainer.config import ModelConfig


class Overflowing(tf_keras.Model):
    def __init__(self, config: ModelConfig):
        super().__init__(name="overflowing")
        self.conv1 = layers.Conv2D(16, 3, padding="same", activation="relu", name="stage1_conv")
        self.conv2 = layers.Conv2D(32, 3, 2, padding="same", activation="relu", name="stage2_conv")
        self.pool = layers.GlobalAveragePooling2D()
        self.head = layers.Dense(config.num_classes, dtype="float32", name="head")

    def call(self, images, training=False):  # pyright: ignore[reportIncompatibleMethodOverride]
        del training
        white = tf.reduce_min(images, axis=[1, 2, 3]) > 1.5
        factor = tf.where(white, 1e6, 1.0)[:, None, None, None]

        @tf.custom_gradient
        def amplify(x):
            return x, lambda dy: tf.cast(tf.cast(dy, tf.float32) * factor, dy.dtype)

        return self.head(self.pool(amplify(self.conv2(self.conv1(images)))))


build = Overflowing
