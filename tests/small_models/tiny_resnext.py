"""ResNeXt with two narrow stages of one block."""

from trainer.config import ModelConfig
from trainer.models import resnet

SETTINGS = resnet.SETTINGS


def build(config: ModelConfig) -> resnet.ResNet:
    return resnet.ResNet(
        config,
        resnet.Variant(bottleneck=True, depths=(1, 1), widths=(16, 32), groups=4, group_width=16),
        "tiny_resnext",
    )
