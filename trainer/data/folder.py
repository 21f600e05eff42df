"""Fetches the image files of a folder, see splits/folder.py."""

import os

import tensorflow as tf

from trainer.config import Config
from trainer.data.source import read_each
from trainer.data.splits.split import Split


def make_source(config: Config, split: Split) -> "FolderSource":
    """Makes the source of a split."""
    del config
    return FolderSource(split)


class FolderSource:
    """A source of image files, which are fetched encoded."""

    in_graph = True
    image_shape: tuple[int, int, int] | None = None

    def __init__(self, split: Split):
        self.class_names = split.class_names
        self.channels = split.channels
        paths, labels = split.content
        with tf.device("CPU"):
            self._paths = tf.constant([os.fsencode(path) for path in paths])
            self._labels = tf.constant(labels, tf.int32)

    def __len__(self) -> int:
        return int(self._labels.shape[0])

    def describe(self, index: int) -> str:
        return os.fsdecode(self._paths[index].numpy())

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images = read_each(tf.io.read_file, tf.gather(self._paths, indices))
        return images, tf.gather(self._labels, indices)
