"""Softmax regression: no batch norm."""

import tf_keras
from tf_keras import layers

from trainer.config import ModelConfig


def build(config: ModelConfig) -> tf_keras.Model:
    return tf_keras.Sequential([layers.Flatten(), layers.Dense(config.num_classes, name="head")])
