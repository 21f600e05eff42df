"""Softmax regression with 2^40 activations per image, more than any machine's memory."""

import tensorflow as tf
import tf_keras
from tf_keras import layers

from trainer.config import ModelConfig


class Hungry(tf_keras.Model):
    def __init__(self, config: ModelConfig):
        super().__init__(name="hungry")
        self.flatten = layers.Flatten()
        self.head = layers.Dense(config.num_classes, name="head")

    def call(self, images, training=False):  # pyright: ignore[reportIncompatibleMethodOverride]
        del training
        logits = self.head(self.flatten(images))
        one = logits[:, :1]
        return logits + tf.reduce_mean(tf.tile(one[..., None], [1, 2**20, 2**20]), axis=-1)[:, :1]


build = Hungry
