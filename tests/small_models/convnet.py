"""Convolutions without batch norm, so that parts of a batch compute the same as the whole."""

import tf_keras
from tf_keras import layers

from trainer.config import ModelConfig


def build(config: ModelConfig) -> tf_keras.Model:
    return tf_keras.Sequential(
        [
            layers.Conv2D(16, 3, padding="same", activation="relu", name="stage1_conv"),
            layers.Conv2D(32, 3, 2, padding="same", activation="relu", name="stage2_conv"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(config.num_classes, dtype="float32", name="head"),
        ]
    )
