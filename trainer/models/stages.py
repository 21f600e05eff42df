"""The stages of a model, by the names of its layers: what is frozen, and how fast each learns."""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras

from trainer.config import Config
from trainer.errors import UserError
from trainer.models.norm import BatchNorm


def stage_of(layer: tf_keras.layers.Layer) -> str:
    """The stage of a direct layer of a model: what stands before the first underscore of its
    name."""
    return layer.name.partition("_")[0]


def stages_of(model: tf_keras.Model) -> dict[str, list[tf_keras.layers.Layer]]:
    """The direct layers of a model by stage, in order; stages without variables are left out."""
    stages: dict[str, list[tf_keras.layers.Layer]] = {}
    for layer in model.layers:
        stages.setdefault(stage_of(layer), []).append(layer)
    return {
        name: found for name, found in stages.items() if any(layer.variables for layer in found)
    }


def freeze(model: tf_keras.Model, last: str) -> None:
    """Nothing up to the end of the stage `last` is trained, batch norm's statistics neither.

    Raises:
        UserError: where there is no such stage, or nothing would be left.
    """
    stages = stages_of(model)
    *names, head = stages
    if not names:
        raise UserError(f"model.freeze ({last!r}): {model.name} has one stage, {head}, alone")
    if last not in names:
        raise UserError(
            f"model.freeze ({last!r}): must be a stage of {model.name} that others follow: "
            f"{', '.join(names)}"
        )
    for name in names[: names.index(last) + 1]:
        for layer in stages[name]:
            layer.trainable = False


def learning_rate_factors(config: Config, model: tf_keras.Model) -> list[float]:
    """What each trainable variable's learning rate is multiplied by: `optimizer.stage_rates`.

    Raises:
        UserError: where these are not one a stage.
    """
    rates, stages = config.optimizer.stage_rates, stages_of(model)
    if not rates:
        return [1.0] * len(model.trainable_variables)
    if len(rates) != len(stages):
        raise UserError(
            f"optimizer.stage_rates ({len(rates)} values): {model.name} has {len(stages)} stages, "
            f"and each must have one: {', '.join(stages)}"
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
    """The variables that a forward pass in training may change: those that are not trained, as
    batch norm's statistics, of layers that are not frozen."""
    still = {
        variable.ref()
        for layer in model.submodules
        if isinstance(layer, tf_keras.layers.Layer)
        and not (layer.updates_statistics if isinstance(layer, BatchNorm) else layer.trainable)
        for variable in layer.variables
    }
    return [v for v in model.variables if not v.trainable and v.ref() not in still]
