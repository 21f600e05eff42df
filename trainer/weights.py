"""Weights from elsewhere: of timm and torchvision, of `trainer.export`, and of other runs."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from trainer import config as config_lib
from trainer import tensor_file
from trainer.config import Config
from trainer.errors import UserError
from trainer.models.build import build_model
from trainer.models.names import Named, libraries, named_variables

_SHOWN = 5  # mismatches in an error
_METADATA = "metadata/.ATTRIBUTES/py_state"


class SavedModel(NamedTuple):
    """A model as a run has saved it."""

    model: tf_keras.Model
    config: Config
    metadata: dict[str, Any]  # class_names, mean, std, …
    what: str  # which of a checkpoint's weights, and of which checkpoint


def read_checkpoint(path: Path, average: bool | None = None) -> SavedModel:
    """The model of a checkpoint, built anew from the config in it.

    Args:
        path: a run's folder, of which its best checkpoint is taken, or else the last; a folder of
            checkpoints; or one of them, as `checkpoints/ckpt-561`.
        average: whether the moving average of the weights is meant; None: where there is one.

    Raises:
        UserError: where there is no checkpoint, or not such a one.
    """
    checkpoint = _checkpoint_at(path)
    try:
        reader = tf.train.load_checkpoint(checkpoint)
        metadata = json.loads(reader.get_tensor(_METADATA))
        config = config_lib.from_dict(metadata["config"])
        has_average = any(
            name.startswith("state/ema_model/") for name in reader.get_variable_to_shape_map()
        )
    except (tf.errors.OpError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{checkpoint}: is no checkpoint of a run ({reason})") from None
    if average and not has_average:
        raise UserError(f"{checkpoint}: has no moving average of the weights: ema_decay was none")
    average = has_average if average is None else average
    anew = dataclasses.replace(config.model, weights=None, freeze=None)
    model = build_model(dataclasses.replace(config, model=anew), metadata["channels"])
    name = "ema_model" if average else "model"
    root = tf.train.Checkpoint(state=tf.train.Checkpoint(**{name: model}))
    root.restore(checkpoint).expect_partial().assert_existing_objects_matched()
    what = f"{'the moving average' if average else 'the weights'} of {checkpoint}"
    return SavedModel(model, config, metadata, what)


def _checkpoint_at(path: Path) -> str:
    if Path(f"{path}.index").exists():
        return str(path)
    for folder in (path / "checkpoints" / "best", path / "checkpoints", path):
        try:
            found = tf.train.latest_checkpoint(str(folder))
        except ValueError:  # a damaged pointer
            continue
        if found:
            return found
    there = "there is no checkpoint in it" if path.is_dir() else "it is not there"
    raise UserError(
        f"{path}: must be weights ({', '.join(tensor_file.SUFFIXES)}), a run's folder or a "
        f"checkpoint, and {there}"
    )


def load_weights(config: Config, model: tf_keras.Model) -> str:
    """Gives the model the weights that `config.model.weights` names, and returns what was loaded,
    what was not, and why: a line for the user.

    The head starts anew where the number of classes differs. A first convolution for another number
    of channels is summed over them, or spread. Anything else that does not fit is an error.

    Raises:
        UserError: where the weights cannot be read, or are another model's.
    """
    assert config.model.weights is not None
    path = Path(config.model.weights).expanduser()
    try:
        if path.suffix in tensor_file.SUFFIXES:
            what, tensors = str(path), tensor_file.read(path)
        else:
            saved = read_checkpoint(path)
            what, tensors = saved.what, torch_tensors(saved.config, saved.model)
        return assign(config, model, tensors, what)
    except UserError as error:
        raise UserError(f"model.weights: {error}") from None


def torch_tensors(config: Config, model: tf_keras.Model) -> dict[str, np.ndarray]:
    """The model's variables, in PyTorch's layout, by the names of its family's first library."""
    library = next(iter(libraries(config).values()))
    return {name: named.to_torch() for name, named in named_variables(model, library).items()}


def assign(
    config: Config, model: tf_keras.Model, tensors: Mapping[str, np.ndarray], what: str
) -> str:
    """Gives the model the tensors, and returns a line of what was loaded.

    Raises:
        UserError: with the first mismatches, where the tensors are those of another model; the
            model is then as it was.
    """
    library, named = _best_library(config, model, tensors)
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    fitting, anew, adapted, wrong = {}, [], [], []
    for name, variable in named.items():
        wanted = variable.torch_shape
        if name not in tensors:
            (anew if variable.layer == "head" else wrong).append(f"{name} is not there")
            continue
        values = tensors[name]
        fitted = _fit(values, wanted)
        if fitted is not None:
            fitting[name] = fitted
            if fitted.size != values.size:
                adapted.append(f"{name} for {wanted[1]} channel(s), was for {values.shape[1]}")
        elif variable.layer == "head" and values.shape[1:] == wanted[1:]:
            anew.append(f"{name} is for {values.shape[0]} classes, not {wanted[0]}")
        else:
            wrong.append(f"{name} is {_shape(values.shape)}, must be {_shape(wanted)}")
    unknown = [name for name in tensors if name not in named and name not in counters]
    wrong += [f"{name} is not in {config.model.name}" for name in unknown]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"{what}: is not {config.model.name}, by {library}'s names: {len(fitting)} of "
            f"{len(named)} tensors fit; {'; '.join(wrong[:_SHOWN])}{more}"
        )
    for name, values in fitting.items():
        named[name].assign_from_torch(values)
    report = [f"weights: {len(fitting)} of {len(named)} tensors from {what}, by {library}'s names"]
    if anew:
        report.append(f"starting anew: {', '.join(anew)}")
    if adapted:
        report.append(f"adapted: {', '.join(adapted)}")
    if counters:
        report.append(f"not needed: {len(counters)} counters (num_batches_tracked)")
    return "; ".join(report)


def _best_library(
    config: Config, model: tf_keras.Model, tensors: Mapping[str, np.ndarray]
) -> tuple[str, dict[str, Named]]:
    """The library by whose names the most tensors are there, and the variables by these names."""
    candidates = {
        library: named_variables(model, name_of) for library, name_of in libraries(config).items()
    }
    best = max(candidates, key=lambda library: len(candidates[library].keys() & tensors.keys()))
    return best, candidates[best]


def _fit(values: np.ndarray, wanted: Sequence[int]) -> np.ndarray | None:
    """The values in the wanted shape; None where they have another one.

    A dense layer and the convolution that it is have the same numbers in the same order. Of a first
    convolution's channels, one is as good as three equal ones.
    """
    if values.size == np.prod(wanted) and values.shape[0] == wanted[0]:
        same_rank = values.ndim == len(wanted)
        return values.reshape(wanted) if not same_rank or values.shape == tuple(wanted) else None
    is_kernel = values.ndim == len(wanted) == 4 and values.shape[2:] == tuple(wanted[2:])
    if is_kernel and values.shape[0] == wanted[0] and {values.shape[1], wanted[1]} == {1, 3}:
        values = values.astype(np.float32)
        mean = values.sum(axis=1, keepdims=True) / wanted[1]
        return np.broadcast_to(mean, tuple(wanted))
    return None


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
