"""Weights from elsewhere: of timm and torchvision, of `trainer.export`, and of other runs."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from trainer import config as config_lib
from trainer.config import Config
from trainer.errors import UserError
from trainer.models.build import build_model, family_of
from trainer.models.weights import tensor_file
from trainer.models.weights.names import Named, libraries, named_variables

_SHOWN = 5  # mismatches in an error
_METADATA = "metadata/.ATTRIBUTES/py_state"
_SAID = ("config", "class_names")  # of what our own files say of themselves
# What TensorFlow raises for a checkpoint that is damaged, or of other shapes.
_DAMAGED = (tf.errors.OpError, ValueError, IndexError)


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
    policy = tf_keras.mixed_precision.global_policy()
    try:
        reader = tf.train.load_checkpoint(checkpoint)
        metadata = json.loads(reader.get_tensor(_METADATA))
        names = reader.get_variable_to_shape_map()
        channels, values = metadata["channels"], metadata["config"]
    except (*_DAMAGED, KeyError, TypeError) as error:
        raise UserError(f"{checkpoint}: is no checkpoint of a run ({_reason(error)})") from None
    try:
        config = config_lib.from_dict(values)
    except UserError as error:
        raise UserError(f"{checkpoint}: its config is not of this version: {error}") from None
    if config.model.num_classes is None:  # as many as its data had
        classes = len(metadata["class_names"])
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, num_classes=classes)
        )
    has_average = any(name.startswith("state/ema_model/") for name in names)
    if average and not has_average:
        raise UserError(f"{checkpoint}: has no moving average of the weights: ema_decay was none")
    average = has_average if average is None else average
    anew = dataclasses.replace(config.model, weights=None, freeze=None)
    try:
        model = build_model(dataclasses.replace(config, model=anew), channels)
        name = "ema_model" if average else "model"
        root = tf.train.Checkpoint(state=tf.train.Checkpoint(**{name: model}))
        root.restore(checkpoint).expect_partial().assert_existing_objects_matched()
    except (*_DAMAGED, AssertionError) as error:
        raise UserError(
            f"{checkpoint}: is damaged, or its model's code has changed since ({_reason(error)})"
        ) from None
    finally:
        tf_keras.mixed_precision.set_global_policy(policy)  # that of the model to come
    what = f"{'the moving average' if average else 'the weights'} of {checkpoint}"
    return SavedModel(model, config, metadata, what)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _checkpoint_at(path: Path) -> str:
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
        there = "it is not there"
        if path.exists():
            there = "there is no checkpoint in it" if path.is_dir() else "it is another file"
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
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
    path = Path(os.path.expanduser(config.model.weights))
    try:
        if path.suffix.lower() in tensor_file.SUFFIXES:
            what, tensors = str(path), tensor_file.read(path)
            found = tensor_file.metadata(path)
            said = {name: json.loads(found[name]) for name in _SAID if name in found}
        else:
            saved = read_checkpoint(path)
            what, tensors = saved.what, torch_tensors(saved.config, saved.model)
            said = {name: saved.metadata[name] for name in _SAID}
        _refuse_another_function(config, said.get("config", {}), what)
        report = assign(config, model, tensors, what)
    except UserError as error:
        raise UserError(f"model.weights: {error}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"model.weights: {path}: metadata that are no JSON ({error})") from None
    classes = said.get("class_names", [])
    if classes and "starting anew" not in report:
        more = ", …" if len(classes) > _SHOWN else ""
        report += f"; its classes were {', '.join(classes[:_SHOWN])}{more}"
    return report


def _refuse_another_function(config: Config, saved: Mapping[str, Any], what: str) -> None:
    """Weights of a model of ours say whose: some fit others, and compute something else there."""
    values = config_lib.to_dict(config)
    for field in ("model.name", "model.blur_pool", "model.batch_norm_epsilon"):
        if field in saved and saved[field] != values[field]:
            raise UserError(
                f"{what}: was trained with {field}={saved[field]}, not {values[field]}; set it too"
            )


def torch_tensors(config: Config, model: tf_keras.Model) -> dict[str, np.ndarray]:
    """The model's variables, in PyTorch's layout, by the names of its family's first library."""
    library = next(iter(libraries(config.model.name).values()))
    return {name: named.to_torch() for name, named in named_variables(model, library).items()}


class _Match(NamedTuple):
    """How tensors fit a model's variables: values by name, and texts of the others."""

    fitting: dict[str, np.ndarray]
    anew: list[str]
    adapted: list[str]
    wrong: list[str]


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
    match = _match(named, {n: v for n, v in tensors.items() if n not in counters})
    if match.wrong:
        more = f"; and {len(match.wrong) - _SHOWN} more" if len(match.wrong) > _SHOWN else ""
        raise UserError(
            f"{what}: is not {config.model.name}, by {library}'s names: {len(match.fitting)} of "
            f"{len(named)} tensors fit; {'; '.join(match.wrong[:_SHOWN])}{more}"
        )
    ours = config.model.batch_norm_epsilon
    epsilons = getattr(family_of(config.model.name), "EPSILONS", {})
    epsilon = epsilons.get((library, config.model.name), ours)
    if epsilon != ours:
        raise UserError(
            f"{what}: {library}'s {config.model.name} has model.batch_norm_epsilon={epsilon}, not "
            f"{ours}; set it too"
        )
    for name, values in match.fitting.items():
        named[name].assign_from_torch(values)
    report = [
        f"weights: {len(match.fitting)} of {len(named)} tensors from {what}, by {library}'s names"
    ]
    if match.anew:
        report.append(f"starting anew: {', '.join(match.anew)}")
    if match.adapted:
        report.append(f"adapted: {', '.join(match.adapted)}")
    if counters:
        report.append(f"not needed: {len(counters)} counters (num_batches_tracked)")
    return "; ".join(report)


def _match(named: Mapping[str, Named], tensors: Mapping[str, np.ndarray]) -> _Match:
    """Which tensors fit which variables, and what is wrong with the others."""
    match = _Match({}, [], [], [])
    for name, variable in named.items():
        is_head, wanted = variable.layer == "head", variable.torch_shape
        if name not in tensors:
            (match.anew if is_head else match.wrong).append(f"{name} is not there")
            continue
        values = tensors[name]
        fitted = _fit(values, wanted)
        is_resizable = values.ndim > 0 and values.size > 0 and values.shape[1:] == wanted[1:]
        if fitted is None and is_head and is_resizable:
            match.anew.append(f"{name} is for {len(values)} classes, not {wanted[0]}")
        elif fitted is None:
            match.wrong.append(f"{name} is {_shape(values.shape)}, must be {_shape(wanted)}")
        elif not np.isfinite(values).all():
            match.wrong.append(f"{name} holds numbers that are not finite")
        else:
            match.fitting[name] = fitted
            if fitted.size != values.size:
                was = values.shape[1]
                match.adapted.append(f"{name} for {wanted[1]} channel(s), was for {was}")
    match.wrong.extend(f"{name} is not in the model" for name in tensors if name not in named)
    return match


def _best_library(
    config: Config, model: tf_keras.Model, tensors: Mapping[str, np.ndarray]
) -> tuple[str, dict[str, Named]]:
    """The library by whose names the most tensors are there, and the variables by these names."""
    candidates = {
        library: named_variables(model, name_of)
        for library, name_of in libraries(config.model.name).items()
    }
    best = max(candidates, key=lambda library: len(candidates[library].keys() & tensors.keys()))
    return best, candidates[best]


def _fit(values: np.ndarray, wanted: Sequence[int]) -> np.ndarray | None:
    """The values in the wanted shape; None where they have another one.

    A dense layer and the convolution that it is have the same numbers in the same order. Of a first
    convolution's channels, one is as good as three equal ones.
    """
    if values.ndim and values.size == np.prod(wanted) and values.shape[0] == wanted[0]:
        same_rank = values.ndim == len(wanted)
        return values.reshape(wanted) if not same_rank or values.shape == tuple(wanted) else None
    is_kernel = values.ndim == len(wanted) == 4 and values.shape[2:] == tuple(wanted[2:])
    if is_kernel and values.shape[0] == wanted[0] and {values.shape[1], wanted[1]} == {1, 3}:
        values = values.astype(np.float32)
        mean = values.sum(axis=1, keepdims=True) / wanted[1]
        return np.broadcast_to(mean, tuple(wanted))
    return None


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"
