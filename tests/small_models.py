"""Two small models, for tests that would say no more of a large one, registered by conftest.py."""

import tf_keras

from trainer.config import Config
from trainer.models.resnet import BasicBlock, ResNet


def linear(config: Config) -> tf_keras.Model:
    """Softmax regression: no batch norm."""
    layers = [tf_keras.layers.Flatten(), tf_keras.layers.Dense(config.model.num_classes)]
    return tf_keras.Sequential(layers)


def resnet8(config: Config) -> ResNet:
    """ResNet-20's stem and stages, of one block each."""
    return ResNet(config, BasicBlock, (16, 32, 64), (1, 1, 1), imagenet_stem=False, name="resnet8")
