"""Builds the model that a config names."""

import contextlib
import re
from collections.abc import Sequence
from types import ModuleType

import tensorflow as tf
import tf_keras

from trainer import user_module
from trainer.config import Config, ModelConfig
from trainer.errors import UserError
from trainer.models.norm import BatchNorm
from trainer.models.stages import freeze, stage_of
from trainer.registry import MODELS

_STAGE = re.compile(r"stem|stage\d+|head")


def family_of(name: str) -> ModuleType:
    """Returns the module of the model `name`: a family's file, or the user's own module.

    Raises:
        UserError: if the user's module cannot be imported, or has no `build`.
    """
    family = user_module.load("model.name", name, MODELS)
    if not callable(getattr(family, "build", None)):
        raise UserError(
            f"model.name ({name}): {user_module.defined_at(family)} has no build(config); define "
            f"one that returns a tf_keras.Model"
        )
    return family


def build_model(config: Config, channels: int) -> tf_keras.Model:
    """Builds the model and its variables for images `[batch, size, size, channels]`.

    Call it under the strategy's scope, so that the variables are mirrored. The initial weights are
    a function of `config.seed` alone.

    Raises:
        UserError: for a setting that the model does not have, or a mistake in the user's module.
    """
    family = family_of(config.model.name)
    _check_settings(config.model, getattr(family, "SETTINGS", ()))
    tf_keras.utils.set_random_seed(config.seed)
    tf_keras.backend.reset_uids()  # so that layers without a name get the same one each time
    tf_keras.mixed_precision.set_global_policy(config.precision)
    model = _build(family, config.model, (None, *2 * (config.data.image_size,), channels))
    if config.model.freeze is not None:
        freeze(model, config.model.freeze)
    if config.model.batch_norm_inference:
        norms = [layer for layer in model.submodules if isinstance(layer, BatchNorm)]
        if not norms:
            raise UserError(
                f"model.batch_norm_inference (True): {config.model.name} has no "
                f"trainer.models.norm.BatchNorm; leave it out"
            )
        for layer in norms:
            layer.inference = True
    return model


def _build(family: ModuleType, config: ModelConfig, shape: Sequence[int | None]) -> tf_keras.Model:
    """Calls the family's `build`, makes the variables, and checks the names of the layers."""
    errors = contextlib.nullcontext()
    is_own = config.name not in MODELS
    if is_own:
        # TensorFlow's errors pass: trainer/failures.py explains lost workers and a lack of memory.
        errors = user_module.one_line_errors("model.name", config.name, (tf.errors.OpError,))
    with errors:
        model = family.build(config)
        if isinstance(model, tf_keras.Model):
            model.build(shape)
        mistake = _mistake(model)
        if is_own and mistake is None:
            mistake = _wrong_logits(model, shape, config.num_classes)
    if mistake:
        place = user_module.defined_at(family.build)
        raise UserError(f"model.name ({config.name}): {place}: {mistake}")
    return model


def _mistake(model: object) -> str | None:
    """Returns what is wrong with what a family has built, and what to do."""
    if not isinstance(model, tf_keras.Model):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        return f"build(config) returned a {kind}; it must return a tf_keras.Model"
    names = [layer.name for layer in model.layers]
    if "head" not in names:
        return (
            "no layer is called 'head'; give that name to the layer that makes the logits, such as "
            "trainer.models.layers.classifier(config)"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        return f"{len(twice)} layers are called {twice[0]!r}; give each its own name"
    for layer in model.layers:
        if layer.variables and not _STAGE.fullmatch(stage_of(layer)):
            return (
                f"layer {layer.name!r} belongs to no stage; start its name with stem, stage1, "
                f"stage2, … or head, such as 'stage1_{layer.name}'"
            )
    return None


def _wrong_logits(
    model: tf_keras.Model, shape: Sequence[int | None], num_classes: int | None
) -> str | None:
    """Returns what is wrong with the model's output for two images: traced, not computed."""

    @tf.function
    def call(images):
        return model(images, training=False)

    count = 2
    images = tf.TensorSpec([count, *shape[1:]], tf.float32)
    logits = call.get_concrete_function(images).structured_outputs
    found, hint = f"a {type(logits).__name__}", ""
    if isinstance(logits, tf.TensorSpec | tf.Tensor):
        if logits.dtype == tf.float32 and logits.shape.is_compatible_with([count, num_classes]):
            return None
        size = logits.shape.as_list() if logits.shape.rank is not None else "of unknown shape"
        found = f"{logits.dtype.name} {size}"
        if logits.dtype.is_floating and logits.dtype != tf.float32:
            hint = "; give the head dtype='float32', which holds in any precision"
    return (
        f"the model returned {found} for {count} images; it must return logits, float32 "
        f"[{count}, {num_classes}], one for each class{hint}"
    )


def _check_settings(config: ModelConfig, known: tuple[str, ...]) -> None:
    for name in ("blur_pool", "stochastic_depth", "dropout"):
        value = getattr(config, name)
        if value and name not in known:
            raise UserError(f"model.{name} ({value}): {config.name} does not have it; leave it out")
