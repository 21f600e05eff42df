"""VGG with one narrow convolution per stage."""

from trainer.config import ModelConfig
from trainer.models import vgg

SETTINGS = vgg.SETTINGS


def build(config: ModelConfig) -> vgg.VGG:
    return vgg.VGG(config, (1, 1, 1, 1, 1), "tiny_vgg", (8, 8, 16, 16, 16), features=32)
