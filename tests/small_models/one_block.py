"""A valid model that learns slowly: one block of 16 channels."""

import tf_keras
from tf_keras import layers

from trainer.config import ModelConfig
from trainer.models.layers import ConvNorm, classifier


def build(config: ModelConfig) -> tf_keras.Model:
    return tf_keras.Sequential(
        [
            ConvNorm(config, 16, kernel_size=3, stride=2, name="stage1_block"),
            layers.GlobalAveragePooling2D(name="head_pool"),
            classifier(config),
        ]
    )
