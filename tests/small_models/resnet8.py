"""The smallest ResNet for small images: one block per stage."""

from trainer.config import ModelConfig
from trainer.models import resnet

SETTINGS = resnet.SETTINGS


def build(config: ModelConfig) -> resnet.ResNet:
    return resnet.ResNet(
        config,
        resnet.Variant(bottleneck=False, depths=(1, 1, 1), widths=(16, 32, 64), stem="cifar"),
        "resnet8",
    )
