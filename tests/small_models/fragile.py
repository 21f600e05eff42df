"""Softmax regression that returns NaN for an all-white image, as for a broken file."""

import tensorflow as tf
import tf_keras
from tf_keras import layers

from trainer.config import ModelConfig


class Fragile(tf_keras.Model):
    def __init__(self, config: ModelConfig):
        super().__init__(name="fragile")
        self.flatten = layers.Flatten()
        self.head = layers.Dense(config.num_classes, name="head")

    def call(self, images, training=False):  # pyright: ignore[reportIncompatibleMethodOverride]
        del training
        white = tf.reduce_min(images, axis=[1, 2, 3]) > 1.5  # digits: (1 - mean) / std is 1.8
        return self.head(self.flatten(images)) * tf.where(white, float("nan"), 1.0)[:, None]


build = Fragile
