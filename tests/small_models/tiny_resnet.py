"""Two narrow stages of one basic block."""

from trainer.config import ModelConfig
from trainer.models import resnet

SETTINGS = resnet.SETTINGS


def build(config: ModelConfig) -> resnet.ResNet:
    return resnet.ResNet(
        config, resnet.Variant(bottleneck=False, depths=(1, 1), widths=(16, 32)), "tiny_resnet"
    )
