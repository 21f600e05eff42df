"""The interface of a data set: random access to labelled images."""

import contextlib
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple, Protocol

import tensorflow as tf

from trainer import user_module
from trainer.config import Config
from trainer.data.own_source import check_own_source
from trainer.data.splits.find import find_split
from trainer.data.splits.split import Split, check_fit, check_mean
from trainer.errors import UserError
from trainer.registry import SOURCES


class Source(Protocol):
    """A random-access collection of labelled images.

    Attributes:
        class_names: one name per label.
        image_shape: `(height, width, channels)` if all images have that shape, or None if they are
            encoded (JPEG, PNG, …) and of any size.
        channels: 1 or 3.
        in_graph: whether fetching is TensorFlow alone. The remote hosts of a TPU slice run no
            Python.
        fingerprint: optional: a text that changes when the examples do. A run refuses to resume on
            data with another one; without it, only counts and class names are compared.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    channels: int
    in_graph: bool

    def __len__(self) -> int: ...

    def describe(self, index: int) -> str:
        """Returns where an example lies, for messages: its file, or its place in one."""
        ...

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the examples at int64 `indices` `[n]`. Called in a tf.data graph.

        Returns:
            Images, uint8 `[n, height, width, channels]`, or encoded, string `[n]`; and labels,
            int32 `[n]`. Their static shapes are known.
        """
        ...


class OpenSplit(NamedTuple):
    """A source, and what its examples are."""

    source: Source
    split: Split  # without its content, which the source holds


def open_split(config: Config, split: str, data_dir: str, found: Split | None = None) -> OpenSplit:
    """Opens a split of the data set `data.name` and checks it against the config.

    Args:
        found: what `find_split` has found of it already.

    Raises:
        UserError: if the data are missing or differ from the config, or for a mistake in the
            user's own module.
    """
    name = config.data.name
    module = _module(name)
    if name in SOURCES:
        if found is None and hasattr(module, "prepare"):
            module.prepare(config, data_dir)
        found = found or find_split(config, split, data_dir)
        assert found is not None
        return OpenSplit(module.make_source(config, found), found._replace(content=None))
    with user_module.one_line_errors("data.name", name):
        source = module.open_source(config, split, data_dir)
    check_own_source(name, module, source)
    check_fit(config, source.class_names, len(source), source.channels, source.image_shape)
    described = Split(
        name=split,
        place="",
        fingerprint=str(getattr(source, "fingerprint", "")),
        num_examples=len(source),
        class_names=tuple(source.class_names),
        class_counts=None,
        channels=source.channels,
        image_shape=source.image_shape,
        content=None,
    )
    return OpenSplit(source, described)


def open_source(config: Config, split: str, data_dir: str) -> Source:
    """Returns the source of `open_split`."""
    return open_split(config, split, data_dir).source


def channels_of(config: Config) -> int:
    """Returns the channels of the images, 1 or 3, without opening the data.

    They are `channels(config)` of the source's module, if it has that function, and else
    `data.channels`.

    Raises:
        UserError: if `data.mean` has values for another number of channels, or for a mistake in
            the user's own module.
    """
    name = config.data.name
    module = _module(name)
    channels = config.data.channels
    if hasattr(module, "channels"):
        with _own_errors(name):
            channels = module.channels(config)
    if channels not in (1, 3):
        raise UserError(f"data.name ({name}): has images of {channels} channels, not 1 or 3")
    check_mean(config, channels)
    return channels


# The reads of one fetch that wait for the disk or the network at the same time.
_READS_AT_ONCE = 64


def read_each(read: Callable[[tf.Tensor], tf.Tensor], what: tf.Tensor) -> tf.Tensor:
    """Returns `read` of each element of `what` `[n]`, string `[n]`; many are read at once."""
    if what.shape[0] == 1:
        return read(what[0])[None]
    return tf.map_fn(read, what, fn_output_signature=tf.string, parallel_iterations=_READS_AT_ONCE)


def _module(name: str) -> ModuleType:
    module = user_module.load("data.name", name, SOURCES)
    if name not in SOURCES and not callable(getattr(module, "open_source", None)):
        raise UserError(
            f"data.name ({name}): {module.__file__} has no open_source(config, split, data_dir); "
            f"define one that returns a Source, see trainer/data/source.py"
        )
    return module


def _own_errors(name: str) -> contextlib.AbstractContextManager[None]:
    """One-line errors for the user's own module; ours keep their tracebacks."""
    if name in SOURCES:
        return contextlib.nullcontext()
    return user_module.one_line_errors("data.name", name)
