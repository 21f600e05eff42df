"""Loads weights into a model: those of timm, torchvision, `trainer.export` or another run."""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tf_keras

from trainer.config import Config
from trainer.config.text import spell
from trainer.errors import UserError
from trainer.models.build import family_of
from trainer.models.weights import tensor_file
from trainer.models.weights.early import EXPECTED, check_same_function, path_of
from trainer.models.weights.heads import match_classes
from trainer.models.weights.names import (
    NamedVariable,
    libraries,
    named_variables,
    torch_tensors,
)
from trainer.models.weights.saved import read_checkpoint
from trainer.models.weights.trained import Trained, find_trained

_SHOWN = 5  # mismatches in an error


class _Weights(NamedTuple):
    """Tensors by name, and what they were trained with; None if unknown."""

    origin: str
    tensors: Mapping[str, np.ndarray]
    trained: Trained | None


def load_weights(config: Config, model: tf_keras.Model, class_names: Sequence[str]) -> str:
    """Assigns the weights that `config.model.weights` names to the model.

    The head's rows go to the classes of the same names; a class that the weights do not have keeps
    its initial values, see `match_classes`. A first convolution for another number of channels is
    summed over them, or spread. Anything else that does not fit is an error.

    Args:
        class_names: this run's, one for each of the model's classes.

    Returns:
        A line for the user: what was loaded, what was not, and why.

    Raises:
        UserError: if the weights cannot be read, or are another model's.
    """
    assert config.model.weights is not None
    try:
        weights = _read(path_of(config.model.weights))
        if weights.trained is not None:
            check_same_function(config, weights.trained)
        return _assign(config, model, weights, class_names)
    except UserError as error:
        raise UserError(f"model.weights: {error}") from None


def _read(path: Path) -> _Weights:
    """Reads a file of tensors, a run's folder or a checkpoint."""
    if path.suffix.lower() in tensor_file.SUFFIXES:
        return _Weights(str(path), tensor_file.read(path), find_trained(path))
    saved = read_checkpoint(path, expected=EXPECTED)
    tensors = torch_tensors(saved.config.model.name, saved.model)
    return _Weights(saved.origin, tensors, saved.trained)


class _Head(NamedTuple):
    """What is taken of the loaded head."""

    names: Set[str]  # of its tensors
    tensors: Mapping[str, np.ndarray]  # with rows in our order, if they are taken by name
    from_scratch: bool  # whether no row is taken
    report: str


def _take_head(
    model: tf_keras.Model,
    named: Mapping[str, NamedVariable],
    tensors: Mapping[str, np.ndarray],
    ours: Sequence[str],
    theirs: Sequence[str],
) -> _Head:
    """Brings the rows of the loaded head into the order of our classes.

    A head that is not a classifier is taken whole if all classes are the same, or else not at all.
    """
    variables = {variable.ref() for variable in model.get_layer("head").variables}
    head = {name: one for name, one in named.items() if one.variable.ref() in variables}
    rows, is_same, report = match_classes(ours, theirs)
    if rows is None or is_same:
        return _Head(head.keys(), {}, False, report)
    if not _is_classifier(list(head.values()), len(rows)):
        reason = "its classes differ, and it is not one layer with a kernel and a bias"
        return _Head(head.keys(), {}, True, f"head: from scratch, since {reason}")
    placed = {
        name: _in_our_order(name, tensors[name], one, rows, len(theirs))
        for name, one in head.items()
        if name in tensors
    }
    return _Head(head.keys(), placed, max(rows) < 0, report)


def _is_classifier(head: Sequence[NamedVariable], num_classes: int) -> bool:
    """Returns whether the variables are those of one dense layer or convolution, whose first axis
    in PyTorch's layout is the classes."""
    is_one_layer = len({one.layer for one in head}) == 1
    kinds = {one.kind for one in head}
    rows = {one.torch_shape[:1] for one in head}
    return is_one_layer and kinds <= {"kernel", "bias"} and rows == {(num_classes,)}


def _in_our_order(
    name: str, values: np.ndarray, one: NamedVariable, rows: Sequence[int], count: int
) -> np.ndarray:
    """Returns a tensor of a head for `count` classes with the rows of our classes; a class without
    a row has its initial values."""
    if not values.ndim or len(values) != count:
        raise UserError(f"{name} is {_shape(values.shape)}, and its file names {count} classes")
    fitted = _fit(values, (count, *one.torch_shape[1:]))
    if fitted is None:
        return values  # and `_match` says why
    placed = one.to_torch()
    for ours, theirs in enumerate(rows):
        if theirs >= 0:
            placed[ours] = fitted[theirs]
    return placed


class _Match(NamedTuple):
    """How tensors fit a model's variables: values by name, and a text for each other tensor."""

    fitting: dict[str, np.ndarray]
    initial: list[str]  # of the head, which keeps its initial values
    adapted: list[str]
    wrong: list[str]


def _assign(
    config: Config, model: tf_keras.Model, weights: _Weights, class_names: Sequence[str]
) -> str:
    """Assigns tensors to the model's variables, by the names of the library that fits best.

    Returns:
        A line about what was loaded.

    Raises:
        UserError: with the first mismatches, if the tensors are another model's; the model then
            stays as it was.
    """
    tensors, origin, trained = weights.tensors, weights.origin, weights.trained
    library, named = _best_library(config.model.name, model, tensors)
    counters = [name for name in tensors if name.endswith(tensor_file.COUNTER)]
    head = _take_head(model, named, tensors, class_names, trained.class_names if trained else ())
    tensors = {n: v for n, v in {**tensors, **head.tensors}.items() if n not in counters}
    match = _match(named, tensors, head)
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
    if head.from_scratch or head.names & match.fitting.keys():
        report.append(head.report)
    if match.adapted:
        report.append(f"adapted: {', '.join(match.adapted)}")
    if counters:
        report.append(f"not needed: {len(counters)} counters ({tensor_file.COUNTER})")
    if trained is not None:
        report += _other_pixels(config, trained)
    return "; ".join(report)


def _match(
    named: Mapping[str, NamedVariable], tensors: Mapping[str, np.ndarray], head: _Head
) -> _Match:
    """Matches tensors with variables, and describes what is wrong with the others."""
    match = _Match({}, [], [], [])
    for name, variable in named.items():
        is_head, wanted = name in head.names, variable.torch_shape
        if is_head and head.from_scratch:
            match.initial.append(name)
            continue
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


def _other_pixels(config: Config, trained: Trained) -> list[str]:
    """Returns a warning if the weights were trained with another mean or standard deviation."""
    was = [trained.values.get(f"data.{name}") for name in ("mean", "std")]
    now = [list(values) for values in (config.data.mean, config.data.std)]
    if None in was or all(_alike(*pair) for pair in zip(was, now, strict=True)):
        return []
    texts = [
        f"data.mean={spell(tuple(mean))} and data.std={spell(tuple(std))}"
        for mean, std in (was, now)
    ]
    return [f"warning: they were trained with {texts[0]}, and here are {texts[1]}"]


def _alike(some: Sequence[float], others: Sequence[float]) -> bool:
    """Returns whether values of channels are the same; one for all is the average of three."""
    if len(some) != len(others):
        some, others = [sum(some) / len(some)], [sum(others) / len(others)]
    return bool(np.allclose(some, others))


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
