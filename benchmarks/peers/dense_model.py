"""A model of one dense layer, to measure the overhead of a step besides its arithmetic."""

import tf_keras

from trainer.config import ModelConfig


class Dense(tf_keras.Model):
    """Maps images `[batch, height, width, channels]` to logits `[batch, classes]`."""

    def __init__(self, config: ModelConfig):
        super().__init__(name="dense")
        self.flatten = tf_keras.layers.Flatten()
        self.head = tf_keras.layers.Dense(config.num_classes, dtype="float32", name="head")

    def call(self, images, training=False):  # pyright: ignore[reportIncompatibleMethodOverride]
        del training
        return self.head(self.flatten(images))


build = Dense
