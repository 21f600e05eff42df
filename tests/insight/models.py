"""Models with three channels for the tests here."""

from trainer import config as config_lib
from trainer.config import Config
from trainer.models.build import build_model


def build(name: str, size: int, *settings: str):
    config = config_lib.override(
        Config(), [f"model.name={name}", f"data.image_size={size}", *settings]
    )
    return config, build_model(config, channels=3)
