"""A wide residual network with one block per stage, of width 1."""

from trainer.config import ModelConfig
from trainer.models import wide_resnet

SETTINGS = wide_resnet.SETTINGS


def build(config: ModelConfig) -> wide_resnet.WideResNet:
    return wide_resnet.WideResNet(config, depth=10, width=1, name="tiny_wrn")
