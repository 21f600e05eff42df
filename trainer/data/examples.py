"""Reads examples by their index, and finds and replaces bad ones: files that cannot be read or
decoded, and labels outside the classes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from trainer import user_module
from trainer.config import Config
from trainer.data.images import resize
from trainer.data.order import replacement
from trainer.data.source import Source
from trainer.failures import reason_of
from trainer.registry import SOURCES

# An example is read twice before another takes its place, so that a read that failed once does not
# change the data. If all attempts fail, the data are broken as a whole.
_OWN_ATTEMPTS, _ATTEMPTS = 2, 16

# Maps an encoded image, string scalar, and its position in the run, int64 scalar, to uint8
# [image_size, image_size, channels].
Decode = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
# Called with a bad example's place, and a function that returns what is wrong with it.
OnBad = Callable[[str, Callable[[], str]], None]


class Loader(NamedTuple):
    """Reads the examples of one split."""

    config: Config
    source: Source
    decode: Decode

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the source's examples at int64 `[n]`; fails at a label outside the classes."""
        images, labels = self.source.fetch(indices)
        # Not an assertion: in deterministic mode, one makes TensorFlow's whole input serial.
        return images, tf.gather(tf.range(self.config.model.num_classes), labels)

    def load(self, indices: tf.Tensor, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns decoded images, uint8 `[n, image_size, image_size, channels]`, and labels, int32
        `[n]`."""
        images, labels = self.fetch(indices)
        if images.dtype != tf.string:
            return resize(images, self.config.data.image_size), labels
        size = self.config.data.image_size
        if images.shape[0] == 1:
            return self.decode(images[0], positions[0])[None], labels
        decoded = tf.map_fn(
            lambda pair: self.decode(*pair),
            (images, positions),
            fn_output_signature=tf.TensorSpec([size, size, self.source.channels], tf.uint8),
        )
        return decoded, labels

    def load_or_replace(self, index: tf.Tensor, position: tf.Tensor, on_bad: OnBad | None):
        """Returns an example or, if it is bad, another one: the same on each pass.

        Returns:
            Image, label, and whether it is the example itself, bool scalar.
        """
        image, label, number = self._attempts(index, position).take(1).get_single_element()
        good = number < _OWN_ATTEMPTS

        def report(index: np.ndarray, position: np.ndarray) -> np.bool_:
            if on_bad is not None:
                on_bad(
                    self.source.describe(int(index)),
                    lambda: self.why_bad(int(index), int(position)),
                )
            return np.bool_(False)

        def reported() -> tf.Tensor:
            # Declared stateless, for the reason above; so it runs only if its result is used.
            false = tf.numpy_function(report, [index, position], tf.bool, stateful=False)
            return tf.ensure_shape(false, [])

        return image, label, tf.cond(good, lambda: tf.constant(True), reported)

    def _attempts(self, index: tf.Tensor, position: tf.Tensor) -> tf.data.Dataset:
        """Returns the attempts that succeed, of the example and its replacements in turn: image,
        label, and the attempt's number.

        A data set without its failed elements is the nearest to `try` that a TensorFlow graph has.
        """
        skip = self.config.data.on_bad_example == "skip"

        def attempt(number: tf.Tensor):
            turn = tf.maximum(number - (_OWN_ATTEMPTS - 1), 0)
            other = replacement(self.config, len(self.source), index, turn)
            images, labels = self.load(other[None], position[None])
            return images[0], labels[0], number

        numbers = tf.data.Dataset.range(_ATTEMPTS if skip else _OWN_ATTEMPTS)
        return numbers.map(attempt).ignore_errors()

    def why_bad(self, index: int, position: int) -> str:
        """Returns what is wrong with an example, in a line, or "" if it is good."""
        where, at = tf.constant([index], tf.int64), tf.constant([position], tf.int64)
        try:
            label = int(self.source.fetch(where)[1][0])
            if not 0 <= label < self.config.model.num_classes:
                return f"label {label} is outside the {self.config.model.num_classes} classes"
            self.load(where, at)
            # Some mistakes show in a graph only, such as a wrong dtype from tf.numpy_function.
            tf.data.Dataset.from_tensors((where, at)).map(self.load).get_single_element()
        except tf.errors.OpError as error:
            return reason_of(error)
        except Exception as error:
            if self.config.data.name in SOURCES:
                raise
            return user_module.one_line(error, self.config.data.name)
        return ""

    def first_bad(self, indices: np.ndarray, positions: np.ndarray) -> str | None:
        """Returns the place of the first bad one of these examples and its error, or None.

        If bad examples are skipped, only one without a good replacement counts.
        """

        def is_good(index: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
            # Uses the image: results that nothing uses are not computed.
            sizes = self._attempts(index, position).map(lambda image, *_: tf.size(image))
            return tf.greater(sizes.take(1).reduce(0, tf.add), 0)

        examples = tf.data.Dataset.from_tensor_slices((indices, positions))
        flags = examples.map(is_good, num_parallel_calls=tf.data.AUTOTUNE)
        for index, position, good in zip(
            indices, positions, flags.as_numpy_iterator(), strict=True
        ):
            if not good:
                reason = self.why_bad(int(index), int(position))
                return f"{self.source.describe(int(index))}: {reason}"
        return None
