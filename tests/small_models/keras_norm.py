"""A model with Keras' own batch norm, as a user might write it."""

import tf_keras
from tf_keras import layers

from trainer.config import ModelConfig


def build(config: ModelConfig) -> tf_keras.Model:
    return tf_keras.Sequential(
        [
            layers.Conv2D(8, 3, padding="same", name="stage1_conv"),
            layers.BatchNormalization(name="stage1_norm"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(config.num_classes, dtype="float32", name="head"),
        ]
    )
