"""One fixed batch of random images, as if ImageNet: for measuring everything but the input."""

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data.source import numbered_classes

_IMAGES = 64
_EXAMPLES = {"train": 1_281_167}  # as many as ImageNet has; of any other split, 50,000


def open_source(config: Config, split: str, data_dir: str) -> "SyntheticSource":
    del data_dir
    return SyntheticSource(config, _EXAMPLES.get(split, 50_000))


class SyntheticSource:
    """`_IMAGES` random images of the model's size, over and over."""

    in_graph = True

    def __init__(self, config: Config, num_examples: int):
        data = config.data
        random = np.random.default_rng(config.seed)
        self.image_shape = (data.image_size, data.image_size, data.channels)
        self.channels = data.channels
        self.class_names = numbered_classes(config, "synthetic images have no classes")
        self._images = tf.constant(
            random.integers(0, 256, (_IMAGES, *self.image_shape), dtype=np.uint8)
        )
        self._labels = tf.constant(
            random.integers(0, len(self.class_names), _IMAGES, dtype=np.int32)
        )
        self._num_examples = num_examples

    def __len__(self) -> int:
        return self._num_examples

    def describe(self, index: int) -> str:
        return f"synthetic image {index % _IMAGES}"

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows = indices % _IMAGES
        return tf.gather(self._images, rows), tf.gather(self._labels, rows)
