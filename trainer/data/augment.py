"""RandAugment (Cubuk et al. 2020) and TrivialAugment (Müller & Hutter 2021): operations on one
uint8 image `[height, width, channels]`.

Each operation computes what Pillow's function of that name does. Those that move pixels take the
nearest one, as Pillow by default and the papers' code.
Operations take a level in [0, 1], of which 0 changes nothing, and a sign. The ranges are those of
the papers. As in later implementations, solarizing and posterizing grow with the level too, and
enhancing goes both ways.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from trainer.config import Config
from trainer.data.order import uniform
from trainer.data.streams import DRAWS_PER_LAYER, augment_streams

_LEVELS = 30


class Ranges(NamedTuple):
    """The strength of each operation at level 1."""

    enhance: float  # brightness, color, contrast and sharpness are multiplied by 1 ± this
    rotate: float  # degrees
    shear: float  # pixels per pixel
    translate: float  # share of the image's size
    translate_pixels: float  # added to that
    bits: int  # removed by posterizing
    fill: float  # the value of pixels from outside the image


RANGES = {
    "randaugment": Ranges(0.9, 30.0, 0.3, 0.45, 0.0, 4, fill=128.0),
    "trivialaugment": Ranges(0.99, 135.0, 0.99, 0.0, 32.0, 6, fill=0.0),
}


class Strength(NamedTuple):
    """The strength and direction of an operation."""

    level: tf.Tensor  # float32 scalar in [0, 1]
    sign: tf.Tensor  # 1.0 or -1.0
    ranges: Ranges


def draws(positions: tf.Tensor, config: Config) -> tf.Tensor:
    """Returns each example's random numbers in [0, 1): float32 `[n, layers, 3]`."""
    layers = config.augment.num_layers if config.augment.policy == "randaugment" else 1
    numbers = [uniform(positions, config.seed, stream) for stream in augment_streams(layers)]
    return tf.reshape(tf.stack(numbers, axis=-1), [-1, layers, DRAWS_PER_LAYER])


def augment(image: tf.Tensor, numbers: tf.Tensor, config: Config) -> tf.Tensor:
    """Returns the image after the policy's operations, uint8 `[height, width, channels]`.

    Args:
        numbers: one example's row of `draws`, float32 `[layers, 3]`.
    """
    ranges = RANGES[config.augment.policy]
    for which, how_strong, which_way in (tf.unstack(row) for row in tf.unstack(numbers)):
        level = tf.constant(config.augment.magnitude / _LEVELS)
        if config.augment.policy == "trivialaugment":
            level = tf.floor(how_strong * (_LEVELS + 1)) / _LEVELS
        strength = Strength(level, tf.where(which_way < 0.5, 1.0, -1.0), ranges)
        branches = [_branch(operation, image, strength) for operation in OPERATIONS.values()]
        image = tf.switch_case(tf.cast(which * len(branches), tf.int32), branches)
    return image


def _branch(operation, image: tf.Tensor, strength: Strength) -> Callable[[], tf.Tensor]:
    return lambda: tf.ensure_shape(operation(image, strength), image.shape)


# --- colours ----------------------------------------------------------------------------------


def blend(degenerate: tf.Tensor | float, image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Returns `degenerate + factor * (image - degenerate)`, uint8, clipped as by Pillow's
    `Image.blend`."""
    values = tf.cast(image, tf.float32)
    return _cut_to_uint8(degenerate + factor * (values - degenerate))


# ITU-R 601-2 luma.
_LUMA = (0.299, 0.587, 0.114)


def saturate(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blends the image `[height, width, channels]` with its grey version."""
    if image.shape[-1] == 1:
        return image
    # Blending and luma in one matrix: each color is factor * itself + (1 - factor) * luma.
    luma = tf.tile(tf.constant(_LUMA)[:, None], [1, 3])
    matrix = factor * tf.eye(3) + (1.0 - factor) * luma
    return _cut_to_uint8(tf.reshape(_colors(image) @ matrix, image.shape))


def increase_contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blends the image `[height, width, channels]` with the mean of its luma, rounded."""
    colors = _colors(image)
    means = tf.ones([1, colors.shape[0]]) @ colors / float(colors.shape[0])
    weights = tf.constant(_LUMA) if image.shape[-1] == 3 else tf.ones(1)
    mean = tf.floor(tf.reduce_sum(means * weights) + 0.5)
    return blend(mean, image, factor)


def _colors(image: tf.Tensor) -> tf.Tensor:
    """Returns the pixels, float32 `[height * width, channels]`."""
    height, width, channels = image.shape
    return tf.reshape(tf.cast(image, tf.float32), [height * width, channels])


def _cut_to_uint8(values: tf.Tensor) -> tf.Tensor:
    """Clips to [0, 255] and drops the fraction, as Pillow does."""
    return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)


def _factor(strength: Strength) -> tf.Tensor:
    return 1.0 + strength.sign * strength.level * strength.ranges.enhance


def _brightness(image, strength):
    return blend(0.0, image, _factor(strength))


def _color(image, strength):
    return saturate(image, _factor(strength))


def _contrast(image, strength):
    return increase_contrast(image, _factor(strength))


def _sharpness(image, strength):
    """Blends with a smoother image, by the kernel [1 1 1; 1 5 1; 1 1 1] / 13."""
    values = tf.cast(image, tf.float32)
    rows = values[:-2] + values[1:-1] + values[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    inner = values[1:-1, 1:-1]
    smooth = tf.floor((box + 4.0 * inner) / 13.0 + 0.5)
    # The outermost pixels lack neighbours and stay: so the difference is padded with zeros.
    difference = tf.pad(smooth - inner, [[1, 1], [1, 1], [0, 0]])
    return _cut_to_uint8(values + (1.0 - _factor(strength)) * difference)


def _posterize(image, strength):
    gone = tf.cast(tf.round(strength.level * strength.ranges.bits), tf.uint8)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, gone), gone)


def _solarize(image, strength):
    # The threshold is at most 255, so level 0 needs its own condition to invert nothing.
    threshold = tf.cast(tf.minimum(tf.math.ceil(256.0 * (1.0 - strength.level)), 255.0), tf.uint8)
    bright = tf.cast((image >= threshold) & (strength.level > 0), tf.uint8)
    return tf.bitwise.bitwise_xor(image, 255 * bright)  # 255 - image for bright pixels


def _autocontrast(image, strength):
    del strength
    colors = _colors(image)
    # By channel, not transposed: TensorFlow would transpose the bytes themselves, and oneDNN
    # logs errors about that on CPUs without AVX-512.
    channels = tf.unstack(colors, axis=1)
    low = tf.stack([tf.reduce_min(channel) for channel in channels])
    high = tf.stack([tf.reduce_max(channel) for channel in channels])
    scale = tf.where(high > low, 255.0 / tf.maximum(high - low, 1.0), 1.0)
    offset = tf.where(high > low, -low * scale, 0.0)
    # Floating-point error may leave an integer slightly too small.
    return tf.reshape(_cut_to_uint8(colors * scale + (offset + 1e-3)), image.shape)


def _equalize(image, strength):
    """Maps values by each channel's cumulative histogram, in steps of (pixels without those of
    the last value) / 255, as Pillow's `ImageOps.equalize`."""
    del strength
    channels = image.shape[-1]
    values = tf.cast(image, tf.int32) + 256 * tf.range(channels)  # a histogram for each channel
    histograms = tf.math.bincount(values, minlength=256 * channels, maxlength=256 * channels)
    histograms = tf.reshape(histograms, [channels, 256])
    cumulative = tf.cumsum(histograms, axis=-1, exclusive=True)
    last_value = 255 - tf.argmax(tf.reverse(histograms > 0, [-1]), axis=-1, output_type=tf.int32)
    last = tf.gather(histograms, last_value, batch_dims=1)
    step = ((tf.reduce_sum(histograms, axis=-1) - last) // 255)[:, None]
    table = tf.minimum((cumulative + step // 2) // tf.maximum(step, 1), 255)
    table = tf.where(step > 0, table, tf.range(256)[None])
    return tf.cast(tf.gather(tf.reshape(table, [-1]), values), tf.uint8)


# --- places -----------------------------------------------------------------------------------


def _transform(image: tf.Tensor, matrix: tuple, fill: float) -> tf.Tensor:
    """Takes each pixel from the nearest to `x' = ax + by + c`, `y' = dx + ey + f`, in the
    coordinates of Pillow's `Image.transform`: a pixel's centre is at a half.

    It gathers pixels: TensorFlow's ImageProjectiveTransform takes twice as long.
    """
    height, width, channels = image.shape
    a, b, c, d, e, f = matrix
    x = tf.range(width, dtype=tf.float32)[None, :] + 0.5
    y = tf.range(height, dtype=tf.float32)[:, None] + 0.5
    column = tf.cast(tf.floor(a * x + b * y + c), tf.int32)
    row = tf.cast(tf.floor(d * x + e * y + f), tf.int32)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = tf.where(inside, row * width + column, height * width)  # the last: outside
    pixels = tf.reshape(image, [height * width, channels])
    outside = tf.fill([1, channels], tf.constant(int(fill), tf.uint8))
    return tf.gather(tf.concat([pixels, outside], axis=0), place)


def _rotate(image, strength):
    angle = strength.sign * strength.level * (strength.ranges.rotate * math.pi / 180.0)
    cos, sin = tf.cos(angle), tf.sin(angle)
    y, x = image.shape[0] / 2.0, image.shape[1] / 2.0  # the centre
    matrix = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    return _transform(image, matrix, strength.ranges.fill)


def _shear_x(image, strength):
    shear = strength.sign * strength.level * strength.ranges.shear
    return _transform(image, (1.0, shear, 0.0, 0.0, 1.0, 0.0), strength.ranges.fill)


def _shear_y(image, strength):
    shear = strength.sign * strength.level * strength.ranges.shear
    return _transform(image, (1.0, 0.0, 0.0, shear, 1.0, 0.0), strength.ranges.fill)


def _translate(image: tf.Tensor, axis: int, strength: Strength) -> tf.Tensor:
    """Moves by whole pixels."""
    size, ranges = image.shape[axis], strength.ranges
    distance = ranges.translate * size + ranges.translate_pixels
    most = min(round(distance), size)
    pixels = tf.round(strength.sign * strength.level * distance)
    padding = [[most, most] if place == axis else [0, 0] for place in range(3)]
    padded = tf.pad(image, padding, constant_values=int(ranges.fill))
    start = tf.clip_by_value(tf.cast(pixels, tf.int32), -most, most) + most
    return padded[start : start + size] if axis == 0 else padded[:, start : start + size]


def _translate_x(image, strength):
    return _translate(image, 1, strength)


def _translate_y(image, strength):
    return _translate(image, 0, strength)


OPERATIONS: dict[str, Callable[[tf.Tensor, Strength], tf.Tensor]] = {
    "identity": lambda image, strength: image,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _color,
    "posterize": _posterize,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
