"""What a data set is to this trainer: random access to labelled images."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import tensorflow as tf

from trainer.config import Config
from trainer.errors import UserError
from trainer.registry import SOURCES


class Source(Protocol):
    """A random-access collection of labelled images.

    Attributes:
        class_names: one name per label.
        image_shape: `(height, width, channels)` where all images have that shape; None where
            they are encoded (JPEG, PNG) and of any size.
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
        """Where an example lies, for a message: its file, or its place in one."""
        ...

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The examples at int64 `indices` `[n]`; called in a tf.data graph.

        Returns:
            Images, uint8 `[n, height, width, channels]`, or encoded, string `[n]`; and labels,
            int32 `[n]`.
        """
        ...


def local_folder(config: Config, data_dir: str) -> Path:
    """`data.path` below `--data_dir`, or from the root.

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


# How many reads of one fetch wait for the disk or the network at once.
_READS_AT_ONCE = 64


def read_each(read: Callable[[tf.Tensor], tf.Tensor], what: tf.Tensor) -> tf.Tensor:
    """A string for each element of `[n]`, read many at once."""
    if what.shape[0] == 1:
        return read(what[0])[None]
    return tf.map_fn(read, what, fn_output_signature=tf.string, parallel_iterations=_READS_AT_ONCE)


def open_source(config: Config, split: str, data_dir: str) -> Source:
    """The source that `data.name` names, checked against the config.

    Raises:
        UserError: where the data are not there, or are not what the config says.
    """
    module = importlib.import_module(SOURCES[config.data.name])
    source: Source = module.open_source(config, split, data_dir)
    _check(config, source)
    return source


def _check(config: Config, source: Source) -> None:
    data = config.data
    if len(source.class_names) != config.model.num_classes:
        raise UserError(
            f"model.num_classes is {config.model.num_classes}, but data set {data.name!r} has "
            f"{len(source.class_names)} classes: "
            f"--set model.num_classes={len(source.class_names)}"
        )
    if len(data.mean) not in (1, source.channels):
        raise UserError(
            f"data.mean and data.std have {len(data.mean)} values, but the images of data set "
            f"{data.name!r} have {source.channels} channels"
        )
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
