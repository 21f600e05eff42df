"""The first two stages of MobileNetV3, with a narrow end."""

from trainer.config import ModelConfig
from trainer.models import mobilenet

SETTINGS = mobilenet.SETTINGS
_WHOLE = mobilenet.VARIANTS["mobilenetv3_small_100"]


def build(config: ModelConfig) -> mobilenet.MobileNet:
    variant = _WHOLE._replace(stages=_WHOLE.stages[:2], last=32, features=min(_WHOLE.features, 32))
    return mobilenet.MobileNet(config, variant, "tiny_mobilenetv3")
