"""Builds the model that a config names."""

import importlib
from types import ModuleType

import tf_keras

from trainer.config import Config, ModelConfig
from trainer.errors import UserError
from trainer.models.norm import BatchNorm
from trainer.models.stages import freeze
from trainer.registry import MODELS


def family_of(name: str) -> ModuleType:
    """Returns the module of the model `name`."""
    return importlib.import_module(MODELS[name])


def build_model(config: Config, channels: int) -> tf_keras.Model:
    """The model with its variables made, for images `[batch, size, size, channels]`.

    Called under the strategy's scope, so that the variables are mirrored. The initial weights
    are a function of `config.seed` alone.

    Raises:
        UserError: for a setting that the model does not have.
    """
    family = family_of(config.model.name)
    _check_settings(config.model, getattr(family, "SETTINGS", ()))
    tf_keras.utils.set_random_seed(config.seed)
    tf_keras.backend.reset_uids()  # layers without a name of their own: the same ones each time
    tf_keras.mixed_precision.set_global_policy(config.precision)
    model = family.build(config.model)
    model.build((None, config.data.image_size, config.data.image_size, channels))
    if config.model.freeze is not None:
        freeze(model, config.model.freeze)
    if config.model.batch_norm_inference:
        norms = [layer for layer in model.submodules if isinstance(layer, BatchNorm)]
        if not norms:
            raise UserError(
                f"model.batch_norm_inference (True): {config.model.name} has no BatchNorm of ours; "
                f"leave it out"
            )
        for layer in norms:
            layer.inference = True
    return model


def _check_settings(config: ModelConfig, known: tuple[str, ...]) -> None:
    for name in ("blur_pool", "stochastic_depth", "dropout"):
        value = getattr(config, name)
        if value and name not in known:
            raise UserError(f"model.{name} ({value}): {config.name} does not have it; leave it out")
