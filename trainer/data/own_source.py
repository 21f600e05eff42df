"""Checks a source that the user wrote: a mistake is one line with its place and what to do."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import tensorflow as tf

from trainer.errors import UserError
from trainer.user_module import defined_at, one_line_errors

_MEMBERS = ("class_names", "image_shape", "channels", "in_graph", "__len__", "describe", "fetch")
_COUNT = 2  # the examples that `fetch` is traced for


def check_own_source(name: str, module: ModuleType, source: Any) -> None:
    """Checks what the `open_source` of the user's module `name` returned.

    `fetch` is traced as tf.data will trace it; nothing is read.

    Raises:
        UserError: if a member of `Source` is missing or has a wrong value, or `fetch` returns
            wrong types or shapes.
    """
    if missing := [member for member in _MEMBERS if not hasattr(source, member)]:
        raise UserError(
            f"data.name ({name}): {defined_at(module.open_source)}: open_source returned a "
            f"{type(source).__name__} without {', '.join(missing)}; it must return a Source, see "
            f"trainer/data/source.py"
        )
    with one_line_errors("data.name", name):
        problem = _wrong_value(source) or _wrong_examples(source)
    if problem:
        place = f"{defined_at(type(source))}: {type(source).__name__}"
        raise UserError(f"data.name ({name}): {place}{problem}")


def _wrong_value(source: Any) -> str | None:
    names, shape = source.class_names, source.image_shape
    is_names = isinstance(names, Sequence) and not isinstance(names, str)
    if not (is_names and all(isinstance(one, str) for one in names)):
        return f".class_names must be a tuple of texts, not {names!r}"
    if source.channels not in (1, 3):
        return f".channels must be 1 or 3, not {source.channels!r}"
    if shape is not None and not (
        isinstance(shape, tuple) and len(shape) == 3 and shape[2] == source.channels
    ):
        return (
            f".image_shape must be (height, width, {source.channels}), or None for encoded images, "
            f"not {shape!r}"
        )
    if not isinstance(source.in_graph, bool):
        return f".in_graph must be True or False, not {source.in_graph!r}"
    if len(source) and not isinstance(source.describe(0), str):
        return f".describe must return text, not {source.describe(0)!r}"
    fingerprint = getattr(source, "fingerprint", "")
    is_text = isinstance(fingerprint, str)
    return None if is_text else f".fingerprint must be text, not {fingerprint!r}"


def _wrong_examples(source: Any) -> str | None:
    if source.image_shape is None:
        images = tf.TensorSpec([_COUNT], tf.string)
    else:
        images = tf.TensorSpec([_COUNT, *source.image_shape], tf.uint8)
    labels = tf.TensorSpec([_COUNT], tf.int32)
    # Without AutoGraph, whose copies of functions have neither file nor line.
    fetch = tf.function(lambda indices: source.fetch(indices), autograph=False)  # noqa: PLW0108
    returned = fetch.get_concrete_function(tf.TensorSpec([_COUNT], tf.int64)).structured_outputs
    expected = f"it must return images, {_text(images)}, and labels, {_text(labels)}"
    if not (isinstance(returned, tuple) and len(returned) == 2):
        return f".fetch returned {_text(returned)} for {_COUNT} indices; {expected}"
    for what, one, wanted in zip(("images", "labels"), returned, (images, labels), strict=True):
        if _text(one) != _text(wanted):
            hint = ""
            if isinstance(one, tf.TensorSpec | tf.Tensor) and not one.shape.is_fully_defined():
                hint = "; tf.ensure_shape gives a tensor its shape"
            return (
                f".fetch returned {what} that are {_text(one)} for {_COUNT} indices; {expected}"
                f"{hint}"
            )
    return None


def _text(value: Any) -> str:
    if isinstance(value, tf.TensorSpec | tf.Tensor):
        shape = "of unknown shape" if value.shape.rank is None else str(value.shape.as_list())
        return f"{value.dtype.name} {shape}"
    return f"a {type(value).__name__}"
