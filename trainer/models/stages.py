"""The stages of a model, by the names of its layers: freezing, and learning rates."""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras

from trainer.config import Config
from trainer.errors import UserError
from trainer.models.norm import BatchNorm


def stage_of(layer: tf_keras.layers.Layer) -> str:
    """Returns the stage of a direct layer: the part of its name before the first underscore."""
    return layer.name.partition("_")[0]


def stages_of(model: tf_keras.Model) -> dict[str, list[tf_keras.layers.Layer]]:
    """Returns the direct layers of a model by stage, in order, for stages with variables."""
    stages: dict[str, list[tf_keras.layers.Layer]] = {}
    for layer in model.layers:
        stages.setdefault(stage_of(layer), []).append(layer)
    return {
        name: found for name, found in stages.items() if any(layer.variables for layer in found)
    }


def freeze(model: tf_keras.Model, last: str) -> None:
    """Excludes everything up to the stage `last` from training, batch norm's statistics too.

    Raises:
        UserError: if there is no such stage, or nothing would be left to train.
    """
    stages = stages_of(model)
    *names, head = stages
    if not names:
        raise UserError(
            f"model.freeze ({last!r}): {model.name} has one stage, {head}, which must be trained; "
            f"set it to none"
        )
    if last not in names:
        raise UserError(
            f"model.freeze ({last!r}): must be a stage of {model.name} before the last: "
            f"{', '.join(names)}"
        )
    for name in names[: names.index(last) + 1]:
        for layer in stages[name]:
            layer.trainable = False


def learning_rate_factors(config: Config, model: tf_keras.Model) -> list[float]:
    """Returns the factor of each trainable variable's learning rate, by `optimizer.stage_rates`.

    Raises:
        UserError: if their number is not that of the stages.
    """
    rates, stages = config.optimizer.stage_rates, stages_of(model)
    if not rates:
        return [1.0] * len(model.trainable_variables)
    if len(rates) != len(stages):
        raise UserError(
            f"optimizer.stage_rates ({len(rates)} values): {model.name} has {len(stages)} stages, "
            f"and each needs a value: {', '.join(stages)}"
        )
    factors = {
        variable.ref(): rate
        for rate, layers in zip(rates, stages.values(), strict=True)
        for layer in layers
        for variable in layer.variables
    }
    outside = [v.name for v in model.trainable_variables if v.ref() not in factors]
    if outside:
        raise UserError(
            f"optimizer.stage_rates: {outside[0]} of {model.name} belongs to no stage; put it in a "
            f"layer"
        )
    return [factors[variable.ref()] for variable in model.trainable_variables]


def moving_statistics(model: tf_keras.Model) -> Sequence[tf.Variable]:
    """Returns the variables that a forward pass in training may change, such as batch norm's
    statistics: those that are not trained, in layers that are not frozen."""
    still = {
        variable.ref()
        for layer in model.submodules
        if isinstance(layer, tf_keras.layers.Layer)
        and not (layer.updates_statistics if isinstance(layer, BatchNorm) else layer.trainable)
        for variable in layer.variables
    }
    return [v for v in model.variables if not v.trainable and v.ref() not in still]
