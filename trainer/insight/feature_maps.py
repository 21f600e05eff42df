"""Inside a model that sees an image: statistics and a picture of its stages' outputs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from trainer.config import Config
from trainer.data.images import decode_eval
from trainer.errors import UserError
from trainer.failures import reason_of
from trainer.insight.anatomy import watching
from trainer.models.build import build_model
from trainer.models.stages import stage_of
from trainer.models.weights.load import load_weights
from trainer.step.normalize import normalize

_COLUMNS, _TILE, _GAP = 8, 112, 4  # maps a stage, and pixels


class Activations(NamedTuple):
    """The output of a stage, that is, of its last direct layer."""

    stage: str
    values: np.ndarray  # float32, without the batch: [height, width, channels], or [features]

    @property
    def statistics(self) -> dict[str, float]:
        """The mean, the standard deviation and the share of zeros, over all numbers."""
        return {
            "mean": float(self.values.mean()),
            "std": float(self.values.std()),
            "zeros": float(np.mean(self.values == 0)),
        }


def activations_of_file(
    config: Config, channels: int, class_names: Sequence[str], path: Path
) -> tuple[list[Activations], str]:
    """Computes what each stage of the config's model makes of an image file.

    Without `model.weights` the weights are random, and each block computes something: the initial
    value 0 of `zero_init_residual` would show identities.

    Args:
        class_names: one for each class of the model.

    Returns:
        The stages' outputs, and a line about the weights.

    Raises:
        UserError: if the image or the weights cannot be read.
    """
    try:
        image = decode_eval(tf.constant(path.read_bytes()), config, channels)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except tf.errors.OpError as error:
        raise UserError(f"{path}: is not an image ({reason_of(error)})") from None
    if config.model.weights is None:
        model_config = dataclasses.replace(config.model, zero_init_residual=False)
        model = build_model(dataclasses.replace(config, model=model_config), channels)
        report = "weights are random: trained ones are shown with --set model.weights=PATH"
    else:
        model = build_model(config, channels)
        report = load_weights(config, model, class_names)
    return activations(model, normalize(image, config)), report


def activations(model: tf_keras.Model, image: tf.Tensor) -> list[Activations]:
    """Computes what each stage makes of a normalised image, in evaluation.

    Args:
        image: float32 `[height, width, channels]`.
    """
    direct = {id(layer) for layer in model.layers}
    outputs: dict[str, np.ndarray] = {}

    def watch(layer: tf_keras.layers.Layer, output: tf.Tensor) -> None:
        if id(layer) in direct:
            outputs[stage_of(layer)] = tf.cast(output[0], tf.float32).numpy()

    with watching(watch):
        model(image[None], training=False)
    return [Activations(stage, values) for stage, values in outputs.items()]


def write_picture(found: list[Activations], path: Path) -> str:
    """Writes the picture of `grid` as a PNG, and returns a line for the user.

    Raises:
        UserError: if the file cannot be written.
    """
    try:
        path.write_bytes(tf.io.encode_png(grid(found)[:, :, None]).numpy())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    stages = [one.stage for one in found if one.values.ndim == 3]
    return f"{path}: one row of feature maps for each of {', '.join(stages)}"


def grid(found: list[Activations]) -> np.ndarray:
    """Returns a picture, uint8 `[height, width]`, with a row for each stage that has maps.

    A row has the 8 maps that vary most, each scaled from its least number, black, to its greatest,
    white.
    """
    rows = []
    for one in found:
        if one.values.ndim != 3:
            continue
        most_varied = np.argsort(-one.values.std(axis=(0, 1)), kind="stable")[:_COLUMNS]
        tiles = [_tile(one.values[:, :, channel]) for channel in most_varied]
        tiles += [np.full_like(tiles[0], 255)] * (_COLUMNS - len(tiles))
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows, axis=0)


def _tile(values: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(values)  # of weights that have diverged
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    shown = tf.image.resize(scaled[:, :, None] * 255.0, [_TILE, _TILE], "nearest")
    inner = tf.cast(tf.round(shown), tf.uint8).numpy()[:, :, 0]
    return np.pad(inner, _GAP // 2, constant_values=255)
