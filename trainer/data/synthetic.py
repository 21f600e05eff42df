"""Random images, as many as ImageNet has, to measure everything but the input."""

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data.splits.split import Split

_IMAGES = 64


def make_source(config: Config, split: Split) -> "SyntheticSource":
    """Makes a split."""
    return SyntheticSource(config, split)


class SyntheticSource:
    """A source of `_IMAGES` random images of the model's size, again and again."""

    in_graph = True

    def __init__(self, config: Config, split: Split):
        random = np.random.default_rng(config.seed)
        self.class_names = split.class_names
        self.channels = split.channels
        assert split.image_shape is not None
        self.image_shape: tuple[int, int, int] | None = split.image_shape
        self._images = tf.constant(
            random.integers(0, 256, (_IMAGES, *split.image_shape), dtype=np.uint8)
        )
        self._labels = tf.constant(
            random.integers(0, len(self.class_names), _IMAGES, dtype=np.int32)
        )
        self._num_examples = split.num_examples

    def __len__(self) -> int:
        return self._num_examples

    def describe(self, index: int) -> str:
        return f"synthetic image {index % _IMAGES}"

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows = indices % _IMAGES
        return tf.gather(self._images, rows), tf.gather(self._labels, rows)
