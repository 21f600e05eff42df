"""A model out of a run's checkpoint."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from trainer.config import Config
from trainer.errors import UserError
from trainer.models.build import build_model
from trainer.models.weights import tensor_file
from trainer.models.weights.trained import (
    Trained,
    checkpoint_places,
    find_trained,
    from_metadata,
)

_METADATA = "metadata/.ATTRIBUTES/py_state"
# What TensorFlow raises for a checkpoint that is damaged, or has other shapes.
_DAMAGED = (tf.errors.OpError, ValueError, IndexError)


class SavedModel(NamedTuple):
    """A model as a run has saved it."""

    model: tf_keras.Model
    config: Config
    trained: Trained
    origin: str  # which of a checkpoint's weights, and the checkpoint's path


def read_checkpoint(
    path: Path, average: bool | None = None, expected: str = "a run's folder or a checkpoint"
) -> SavedModel:
    """Reads the model of a checkpoint, built from the config in it.

    Args:
        path: a run's folder (its best checkpoint, or else the last), a folder of checkpoints (the
            last), or a checkpoint, such as `checkpoints/ckpt-561`.
        average: read the moving average of the weights; None: if there is one.
        expected: what the path must be, for the error's text.

    Raises:
        UserError: if there is no checkpoint of a run, or it cannot be read.
    """
    checkpoint = _checkpoint_at(path, expected)
    policy = tf_keras.mixed_precision.global_policy()
    trained, names = _metadata_of(checkpoint)
    config = trained.config
    has_average = any(name.startswith("state/ema_model/") for name in names)
    if average and not has_average:
        raise UserError(f"{checkpoint}: has no moving average of the weights: ema_decay was none")
    average = has_average if average is None else average
    plain = dataclasses.replace(config.model, weights=None, freeze=None)
    try:
        model = build_model(dataclasses.replace(config, model=plain), trained.channels)
        name = "ema_model" if average else "model"
        root = tf.train.Checkpoint(state=tf.train.Checkpoint(**{name: model}))
        root.restore(checkpoint).expect_partial().assert_existing_objects_matched()
    except (*_DAMAGED, AssertionError) as error:
        raise UserError(
            f"{checkpoint}: is damaged, or its model's code has changed since ({_reason(error)})"
        ) from None
    finally:
        tf_keras.mixed_precision.set_global_policy(policy)  # for models built later
    origin = f"{'the moving average' if average else 'the weights'} of {checkpoint}"
    return SavedModel(model, config, trained, origin)


def read_trained(path: Path) -> Trained | None:
    """Reads what weights were trained with: the run's config, classes and channels.

    Args:
        path: a run's folder, a folder of checkpoints, a checkpoint, or a file of tensors.

    Returns:
        None for another library's file.

    Raises:
        UserError: if there is no checkpoint of a run, or it cannot be read.
    """
    found = find_trained(path)
    if found is None and path.suffix.lower() not in tensor_file.SUFFIXES:
        found, _ = _metadata_of(_checkpoint_at(path, "a run's folder or a checkpoint"))
    return found


def _metadata_of(checkpoint: str) -> tuple[Trained, list[str]]:
    """Returns what a checkpoint was trained with, and the names of what it holds."""
    try:
        reader = tf.train.load_checkpoint(checkpoint)
        text = reader.get_tensor(_METADATA)
        trained = from_metadata(checkpoint, json.loads(text))
        names = list(reader.get_variable_to_shape_map())
    except _DAMAGED as error:
        raise UserError(f"{checkpoint}: is not a checkpoint of a run ({_reason(error)})") from None
    if trained is None:
        raise UserError(f"{checkpoint}: is not a checkpoint of a run (it holds no config)")
    return trained, names


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _checkpoint_at(path: Path, expected: str) -> str:
    places = checkpoint_places(path, expected)
    for place in places:
        if not place.is_dir():
            return str(place)
        try:
            found = tf.train.latest_checkpoint(str(place))
        except ValueError:  # a damaged pointer
            continue
        if found:
            return found
    raise UserError(f"{path}: must be {expected}, but it holds no checkpoint")
