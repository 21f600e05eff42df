"""Fetches images from arrays in memory, see splits/arrays.py."""

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data.splits.split import Split


def make_source(config: Config, split: Split) -> "ArraySource":
    """Makes the source of a split."""
    del config
    return ArraySource(split)


class ArraySource:
    """A source of arrays: images uint8 `[n, height, width, channels]`, integer labels `[n]`."""

    in_graph = True

    def __init__(self, split: Split):
        images, labels = split.content
        self._path, self._split = split.place, split.name
        self.image_shape = split.image_shape
        self.channels = split.channels
        self.class_names = split.class_names
        with tf.device("CPU"):
            self._images = tf.constant(images)
            self._labels = tf.constant(np.clip(labels, -1, 2**31 - 1).astype(np.int32))

    def __len__(self) -> int:
        return int(self._labels.shape[0])

    def describe(self, index: int) -> str:
        return f"{self._path}, x_{self._split}[{index}]"

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(self._images, indices), tf.gather(self._labels, indices)
