"""Inside a model that sees an image: statistics and a picture of its stages' outputs."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from trainer.insight.anatomy import watching
from trainer.models.stages import stage_of

_COLUMNS, _TILE, _GAP = 8, 112, 4  # maps a stage, and pixels


class Activations(NamedTuple):
    """The output of a stage: of its last direct layer."""

    stage: str
    values: np.ndarray  # float32, without the batch: [height, width, channels], or [features]

    @property
    def statistics(self) -> dict[str, float]:
        """Of all numbers of the output."""
        return {
            "mean": float(self.values.mean()),
            "std": float(self.values.std()),
            "zeros": float(np.mean(self.values == 0)),
        }


def activations(model: tf_keras.Model, image: tf.Tensor) -> list[Activations]:
    """What each stage makes of a normalised image, float32 `[height, width, channels]`, in
    evaluation."""
    direct = {id(layer) for layer in model.layers}
    outputs: dict[str, np.ndarray] = {}

    def watch(layer: tf_keras.layers.Layer, output: tf.Tensor) -> None:
        if id(layer) in direct:
            outputs[stage_of(layer)] = tf.cast(output[0], tf.float32).numpy()

    with watching(watch):
        model(image[None], training=False)
    return [Activations(stage, values) for stage, values in outputs.items()]


def grid(found: list[Activations]) -> np.ndarray:
    """A picture, uint8 `[height, width]`: a row for each stage that has maps, of the 8 that vary
    most, each from its least number, black, to its greatest, white."""
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
