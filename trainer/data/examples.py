"""Examples by their index, and what becomes of a bad one: a file that cannot be read or decoded, a
label outside the classes."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data.order import replacement
from trainer.data.source import Source

# So many examples in a row that are all bad are no accident.
_ATTEMPTS = 16

# From an encoded image, string scalar, and its position in the run, int64 scalar, to uint8
# [image_size, image_size, channels].
Decode = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
# Called with where a bad example is, and what says what is wrong with it.
OnBad = Callable[[str, Callable[[], str]], None]
# What TensorFlow's messages have around them: {{function_node …}} … [Op:DecodeImage] name:
_AROUND_MESSAGES = re.compile(r"\{\{.*?\}\} ?| ?\[Op:.*")


def reason_of(error: tf.errors.OpError) -> str:
    """What TensorFlow says, in a line."""
    return _AROUND_MESSAGES.sub("", " ".join(error.message.split()))[:300]


class Loader(NamedTuple):
    """How the examples of one split are read."""

    config: Config
    source: Source
    decode: Decode

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """As the source's, int64 `[n]`; stops at a label outside the classes."""
        images, labels = self.source.fetch(indices)
        num_classes = self.config.model.num_classes
        checks = [
            tf.debugging.Assert(
                tf.reduce_all((labels >= 0) & (labels < num_classes)),
                [f"a label outside the {num_classes} classes:", labels],
                summarize=1,
            )
        ]
        with tf.control_dependencies(checks):
            return images, tf.identity(labels)

    def load(self, index: tf.Tensor, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One example: uint8 `[image_size, image_size, channels]` and int32 scalar."""
        images, labels = self.fetch(index[None])
        image = images[0]
        return self.decode(image, position), labels[0]

    def load_or_replace(self, index: tf.Tensor, position: tf.Tensor, on_bad: OnBad | None):
        """As `load`, of another example where this one is bad, which is the same on each pass.

        Returns:
            Image, label, and whether the example itself was good, bool scalar.
        """

        def attempt(number: tf.Tensor):
            other = replacement(self.config, len(self.source), index, number)
            return (*self.load(other, position), number)

        # A data set of attempts, of which those that fail vanish, is what TensorFlow has of `try`.
        attempts = tf.data.Dataset.range(_ATTEMPTS).map(attempt)
        image, label, number = attempts.ignore_errors().take(1).get_single_element()
        good = tf.equal(number, 0)

        def report(index: np.ndarray, position: np.ndarray) -> None:
            if on_bad is not None:
                on_bad(
                    self.source.describe(int(index)),
                    lambda: self.why_bad(int(index), int(position)),
                )

        def tell() -> tf.Tensor:
            with tf.control_dependencies([tf.numpy_function(report, [index, position], [])]):
                return tf.constant(False)

        return image, label, tf.cond(good, lambda: tf.constant(True), tell)

    def why_bad(self, index: int, position: int) -> str:
        """What is wrong with an example, in a line; "" where nothing is."""
        try:
            self.load(tf.constant(index, tf.int64), tf.constant(position, tf.int64))
        except tf.errors.OpError as error:
            return reason_of(error)
        return ""

    def first_bad(self, indices: np.ndarray, positions: np.ndarray) -> str | None:
        """Where the first bad one of these examples is, and what is wrong with it."""

        def is_good(index: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
            tries = tf.data.Dataset.range(1).map(lambda _: self.load(index, position))
            # Of the image, too: what nobody asks for is not computed.
            sizes = tries.ignore_errors().map(lambda image, label: tf.size(image) + 0 * label)
            return sizes.reduce(0, tf.add) > 0

        examples = tf.data.Dataset.from_tensor_slices((indices, positions))
        flags = examples.map(is_good, num_parallel_calls=tf.data.AUTOTUNE)
        for index, position, good in zip(
            indices, positions, flags.as_numpy_iterator(), strict=True
        ):
            if not good:
                reason = self.why_bad(int(index), int(position))
                return f"{self.source.describe(int(index))}: {reason}"
        return None
