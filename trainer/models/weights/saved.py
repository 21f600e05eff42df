"""A model out of a run's checkpoint."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras

from trainer import config as config_lib
from trainer.config import Config
from trainer.errors import UserError
from trainer.models.build import build_model

_METADATA = "metadata/.ATTRIBUTES/py_state"
# What TensorFlow raises for a checkpoint that is damaged, or has other shapes.
_DAMAGED = (tf.errors.OpError, ValueError, IndexError)


class SavedModel(NamedTuple):
    """A model as a run has saved it."""

    model: tf_keras.Model
    config: Config
    metadata: dict[str, Any]  # class_names, mean, std, …
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
    try:
        reader = tf.train.load_checkpoint(checkpoint)
        metadata = json.loads(reader.get_tensor(_METADATA))
        names = reader.get_variable_to_shape_map()
        channels, values = metadata["channels"], metadata["config"]
    except (*_DAMAGED, KeyError, TypeError) as error:
        raise UserError(f"{checkpoint}: is not a checkpoint of a run ({_reason(error)})") from None
    try:
        config = config_lib.from_dict(values)
    except UserError as error:
        raise UserError(f"{checkpoint}: its config cannot be used: {error}") from None
    config = config_lib.with_num_classes(config, metadata["class_names"])
    has_average = any(name.startswith("state/ema_model/") for name in names)
    if average and not has_average:
        raise UserError(f"{checkpoint}: has no moving average of the weights: ema_decay was none")
    average = has_average if average is None else average
    plain = dataclasses.replace(config.model, weights=None, freeze=None)
    try:
        model = build_model(dataclasses.replace(config, model=plain), channels)
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
    return SavedModel(model, config, metadata, origin)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _checkpoint_at(path: Path, expected: str) -> str:
    try:
        path = path.with_suffix("") if path.suffix == ".index" else path
        if Path(f"{path}.index").exists():
            return str(path)
        for folder in (path / "checkpoints" / "best", path / "checkpoints", path):
            try:
                found = tf.train.latest_checkpoint(str(folder))
            except ValueError:  # a damaged pointer
                continue
            if found:
                return found
        there = "it does not exist"
        if path.exists():
            there = "it holds no checkpoint" if path.is_dir() else "it is another kind of file"
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    raise UserError(f"{path}: must be {expected}, but {there}")
