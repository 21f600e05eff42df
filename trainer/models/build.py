"""Builds the model that a config names."""

import importlib

import tf_keras

from trainer.config import Config
from trainer.models import MODELS


def build_model(config: Config, channels: int) -> tf_keras.Model:
    """The model with its variables made, for images `[batch, size, size, channels]`.

    Called under the strategy's scope, so that the variables are mirrored. The initial weights
    are a function of `config.seed` alone.
    """
    tf_keras.utils.set_random_seed(config.seed)
    tf_keras.mixed_precision.set_global_policy(config.precision)
    family = importlib.import_module(MODELS[config.model.name])
    model = getattr(family, config.model.name)(config)
    model.build((None, config.data.image_size, config.data.image_size, channels))
    return model
