"""The interface of a data set: random access to labelled images."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Protocol

import tensorflow as tf

from trainer import user_module
from trainer.config import Config
from trainer.data.own_source import check_own_source
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


def open_source(config: Config, split: str, data_dir: str) -> Source:
    """Opens the data set `data.name` and checks it against the config.

    Raises:
        UserError: if the data are missing or differ from the config, or for a mistake in the
            user's own module.
    """
    name = config.data.name
    module = _module(name)
    with _own_errors(name):
        source = module.open_source(config, split, data_dir)
    if name not in SOURCES:
        check_own_source(name, module, source)
    _check(config, source)
    return source


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
    _check_mean(config, channels)
    return channels


def numbered_classes(config: Config, reason: str) -> tuple[str, ...]:
    """Returns the numbers below `model.num_classes` as class names, for data without names.

    Raises:
        UserError: with the reason why the data don't tell, if `model.num_classes` is none.
    """
    if config.model.num_classes is None:
        raise UserError(f"model.num_classes=none: {reason}; --set model.num_classes=N gives it")
    return tuple(map(str, range(config.model.num_classes)))


def local_folder(config: Config, data_dir: str) -> Path:
    """Returns `data.path` below `--data_dir`, or `data.path` itself if it is absolute.

    Raises:
        UserError: for an address: these files are listed and read as files.
    """
    for name, value in (("--data_dir", data_dir), ("data.path", config.data.path or "")):
        if "://" in value:
            raise UserError(
                f"{name}={value}: data set {config.data.name!r} is read from a folder, and this is "
                f"an address; mount it, or copy it to this machine"
            )
    return Path(data_dir).expanduser() / (config.data.path or "")


# The reads of one fetch that wait for the disk or the network at the same time.
_READS_AT_ONCE = 64


def read_each(read: Callable[[tf.Tensor], tf.Tensor], what: tf.Tensor) -> tf.Tensor:
    """Returns `read` of each element of `what` `[n]`, string `[n]`; many are read at once."""
    if what.shape[0] == 1:
        return read(what[0])[None]
    return tf.map_fn(read, what, fn_output_signature=tf.string, parallel_iterations=_READS_AT_ONCE)


def _module(name: str) -> ModuleType:
    module = user_module.load("data.name", name, SOURCES)
    if not callable(getattr(module, "open_source", None)):
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


def _check(config: Config, source: Source) -> None:
    data, names = config.data, source.class_names
    if len(names) < 2:
        found = f"1 class ({names[0]})" if names else "no classes"
        raise UserError(
            f"data set {data.name!r}: has {found}, and training needs at least 2; check --data_dir "
            f"and data.path"
        )
    if config.model.num_classes not in (None, len(names)):
        raise UserError(
            f"model.num_classes is {config.model.num_classes}, but data set {data.name!r} has "
            f"{len(names)} classes: --set model.num_classes={len(names)}"
        )
    _check_mean(config, source.channels)
    if not len(source):
        raise UserError(f"data set {data.name!r}: has no examples")
    if source.image_shape is not None and data.crop == "random_resized":
        raise UserError(
            f"data.crop is 'random_resized', which needs encoded images of any size, but those of "
            f"data set {data.name!r} are all {source.image_shape}: use 'pad' or 'none'"
        )
    if source.image_shape is None and data.crop == "pad":
        raise UserError(
            f"data.crop is 'pad', which needs images of one size, but those of data set "
            f"{data.name!r} vary: use 'random_resized' or 'none'"
        )


def _check_mean(config: Config, channels: int) -> None:
    if len(config.data.mean) not in (1, channels):
        raise UserError(
            f"data.mean and data.std have {len(config.data.mean)} values, but the images of data "
            f"set {config.data.name!r} have {channels} channels"
        )
