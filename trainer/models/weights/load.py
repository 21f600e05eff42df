"""Loads weights into a model: those of timm, torchvision, `trainer.export` or another run."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tf_keras

from trainer import config as config_lib
from trainer.config import Config
from trainer.errors import UserError
from trainer.models.build import family_of
from trainer.models.weights import tensor_file
from trainer.models.weights.names import (
    NamedVariable,
    libraries,
    named_variables,
    torch_tensors,
)
from trainer.models.weights.saved import read_checkpoint

_SHOWN = 5  # mismatches in an error, classes in a report


class _Weights(NamedTuple):
    """Tensors by name, and what our own files add to them."""

    origin: str
    tensors: Mapping[str, np.ndarray]
    config: Mapping[str, Any]  # of the run, by field; empty if unknown
    class_names: Sequence[str]


def load_weights(config: Config, model: tf_keras.Model) -> str:
    """Assigns the weights that `config.model.weights` names to the model.

    The head keeps its initial values if the number of classes differs. A first convolution for
    another number of channels is summed over them, or spread. Anything else that does not fit is an
    error.

    Returns:
        A line for the user: what was loaded, what was not, and why.

    Raises:
        UserError: if the weights cannot be read, or are another model's.
    """
    assert config.model.weights is not None
    try:
        weights = _read(Path(os.path.expanduser(config.model.weights)))
        _check_same_function(config, weights)
        report, keeps_head = _assign(config, model, weights.tensors, weights.origin)
    except UserError as error:
        raise UserError(f"model.weights: {error}") from None
    if weights.class_names and keeps_head:
        more = ", …" if len(weights.class_names) > _SHOWN else ""
        report += f"; its classes were {', '.join(weights.class_names[:_SHOWN])}{more}"
    return report


def _read(path: Path) -> _Weights:
    """Reads a file of tensors, a run's folder or a checkpoint."""
    if path.suffix.lower() not in tensor_file.SUFFIXES:
        files = f"weights ({', '.join(tensor_file.SUFFIXES)})"
        saved = read_checkpoint(path, expected=f"{files}, a run's folder or a checkpoint")
        tensors = torch_tensors(saved.config.model.name, saved.model)
        metadata = saved.metadata
        return _Weights(saved.origin, tensors, metadata["config"], metadata["class_names"])
    tensors, found = tensor_file.read(path), tensor_file.metadata(path)
    try:
        config, class_names = (
            json.loads(found.get(name, empty))
            for name, empty in (("config", "{}"), ("class_names", "[]"))
        )
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: its metadata are not JSON ({error})") from None
    return _Weights(str(path), tensors, config, class_names)


def _check_same_function(config: Config, weights: _Weights) -> None:
    """Refuses the weights of a model that fit ours in shape but compute something else there."""
    values = config_lib.to_dict(config)
    for field in ("model.name", "model.blur_pool", "model.batch_norm_epsilon"):
        if field in weights.config and weights.config[field] != values[field]:
            raise UserError(
                f"{weights.origin}: was trained with {field}={weights.config[field]}, not "
                f"{values[field]}; set it too"
            )


class _Match(NamedTuple):
    """How tensors fit a model's variables: values by name, and a text for each other tensor."""

    fitting: dict[str, np.ndarray]
    initial: list[str]  # of the head, which keeps its initial values
    adapted: list[str]
    wrong: list[str]


def _assign(
    config: Config, model: tf_keras.Model, tensors: Mapping[str, np.ndarray], origin: str
) -> tuple[str, bool]:
    """Assigns tensors to the model's variables, by the names of the library that fits best.

    Returns:
        A line about what was loaded, and whether the head was.

    Raises:
        UserError: with the first mismatches, if the tensors are another model's; the model then
            stays as it was.
    """
    library, named = _best_library(config.model.name, model, tensors)
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    match = _match(named, {n: v for n, v in tensors.items() if n not in counters})
    if match.wrong:
        more = f"; and {len(match.wrong) - _SHOWN} more" if len(match.wrong) > _SHOWN else ""
        raise UserError(
            f"{origin}: is not {config.model.name} by {library}'s names: {len(match.fitting)} of "
            f"{len(named)} tensors fit; {'; '.join(match.wrong[:_SHOWN])}{more}"
        )
    ours = config.model.batch_norm_epsilon
    epsilons = getattr(family_of(config.model.name), "EPSILONS", {})
    epsilon = epsilons.get((library, config.model.name), ours)
    if epsilon != ours:
        raise UserError(
            f"{origin}: {library}'s {config.model.name} has model.batch_norm_epsilon={epsilon}, "
            f"not {ours}; set it too"
        )
    for name, values in match.fitting.items():
        named[name].assign_from_torch(values)
    report = [
        f"weights: {len(match.fitting)} of {len(named)} tensors from {origin}, by {library}'s names"
    ]
    if match.initial:
        report.append(f"starting from scratch: {', '.join(match.initial)}")
    if match.adapted:
        report.append(f"adapted: {', '.join(match.adapted)}")
    if counters:
        report.append(f"not needed: {len(counters)} counters (num_batches_tracked)")
    return "; ".join(report), not match.initial


def _match(named: Mapping[str, NamedVariable], tensors: Mapping[str, np.ndarray]) -> _Match:
    """Matches tensors with variables, and describes what is wrong with the others."""
    match = _Match({}, [], [], [])
    for name, variable in named.items():
        is_head, wanted = variable.layer == "head", variable.torch_shape
        if name not in tensors:
            (match.initial if is_head else match.wrong).append(f"{name} is missing")
            continue
        values = tensors[name]
        fitted = _fit(values, wanted)
        is_resizable = values.ndim > 0 and values.size > 0 and values.shape[1:] == wanted[1:]
        if fitted is None and is_head and is_resizable:
            match.initial.append(f"{name} is for {len(values)} classes, not {wanted[0]}")
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
    model_name: str, model: tf_keras.Model, tensors: Mapping[str, np.ndarray]
) -> tuple[str, dict[str, NamedVariable]]:
    """Returns the library whose names match the most tensors, and the variables by its names."""
    candidates = {
        library: named_variables(model, name_of)
        for library, name_of in libraries(model_name).items()
    }
    best = max(candidates, key=lambda library: len(candidates[library].keys() & tensors.keys()))
    return best, candidates[best]


def _fit(values: np.ndarray, wanted: Sequence[int]) -> np.ndarray | None:
    """Returns the values in the wanted shape, or None if they do not fit.

    A dense layer and the equivalent convolution have the same numbers in the same order. In a first
    convolution, one channel is equivalent to three equal ones.
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
