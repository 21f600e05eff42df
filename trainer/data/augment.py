"""RandAugment (Cubuk et al. 2020) and TrivialAugment (Müller & Hutter 2021): operations on one
uint8 image `[height, width, channels]`.

Each operation is what Pillow's function of that name computes; affine ones interpolate bilinearly.
Operations take a level in [0, 1], where 0 changes nothing, and a sign. Ranges are those of the
papers; as in their later implementations, solarizing and posterizing grow with the level too, and
enhancing goes both ways.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from trainer.config import Config
from trainer.data.order import uniform

_LEVELS = 30
# Streams of random numbers: of each layer, which operation, how strong, and which way.
_FIRST_STREAM, _DRAWS_PER_LAYER = 10, 3


class Ranges(NamedTuple):
    """What an operation does at level 1."""

    enhance: float  # 1 ± this is the factor of brightness, color, contrast, sharpness
    rotate: float  # degrees
    shear: float  # pixels a pixel
    translate: float  # of the image's size
    translate_pixels: float  # beside that
    bits: int  # that posterizing takes away
    fill: float  # what comes in from outside the image


RANGES = {
    "randaugment": Ranges(0.9, 30.0, 0.3, 0.45, 0.0, 4, fill=128.0),
    "trivialaugment": Ranges(0.99, 135.0, 0.99, 0.0, 32.0, 6, fill=0.0),
}


class Strength(NamedTuple):
    """How an operation is applied."""

    level: tf.Tensor  # float32 scalar in [0, 1]
    sign: tf.Tensor  # 1.0 or -1.0
    ranges: Ranges


def draws(positions: tf.Tensor, config: Config) -> tf.Tensor:
    """The random numbers in [0, 1) of each example: float32 `[n, layers, 3]`."""
    layers = config.augment.num_layers if config.augment.policy == "randaugment" else 1
    streams = range(_FIRST_STREAM, _FIRST_STREAM + layers * _DRAWS_PER_LAYER)
    numbers = tf.stack([uniform(positions, config.seed, stream) for stream in streams], axis=-1)
    return tf.reshape(numbers, [-1, layers, _DRAWS_PER_LAYER])


def augment(image: tf.Tensor, numbers: tf.Tensor, config: Config) -> tf.Tensor:
    """The image after the policy's operations.

    Args:
        numbers: of `draws`, float32 `[layers, 3]`.
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


def blend(degenerate: tf.Tensor, image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """`degenerate + factor * (image - degenerate)`, uint8, cut off as Pillow's `Image.blend`."""
    degenerate, values = tf.cast(degenerate, tf.float32), tf.cast(image, tf.float32)
    blended = degenerate + factor * (values - degenerate)
    return tf.cast(tf.clip_by_value(blended, 0.0, 255.0), tf.uint8)


def luminance(images: tf.Tensor) -> tf.Tensor:
    """ITU-R 601-2 luma, rounded, float32 `[…, height, width, 1]`."""
    values = tf.cast(images, tf.float32)
    if images.shape[-1] == 1:
        return values
    weights = tf.constant([0.299, 0.587, 0.114])
    return tf.floor(tf.reduce_sum(values * weights, axis=-1, keepdims=True) + 0.5)


def mean_luminance(images: tf.Tensor) -> tf.Tensor:
    """Rounded, float32 `[…, 1, 1, 1]`."""
    return tf.floor(tf.reduce_mean(luminance(images), axis=[-3, -2, -1], keepdims=True) + 0.5)


def _factor(strength: Strength) -> tf.Tensor:
    return 1.0 + strength.sign * strength.level * strength.ranges.enhance


def _brightness(image, strength):
    return blend(tf.zeros_like(image), image, _factor(strength))


def _color(image, strength):
    return blend(luminance(image), image, _factor(strength))


def _contrast(image, strength):
    return blend(mean_luminance(image), image, _factor(strength))


def _sharpness(image, strength):
    kernel = tf.constant([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13.0
    channels = image.shape[-1]
    filters = tf.tile(kernel[:, :, None, None], [1, 1, channels, 1])
    values = tf.cast(image, tf.float32)[None]
    smooth = tf.nn.depthwise_conv2d(values, filters, [1, 1, 1, 1], "VALID")[0]
    # The outermost pixels have no neighbours on one side, and stay.
    inner = tf.pad(tf.floor(smooth + 0.5), [[1, 1], [1, 1], [0, 0]], constant_values=-1.0)
    return blend(tf.where(inner < 0, values[0], inner), image, _factor(strength))


def _posterize(image, strength):
    gone = tf.cast(tf.round(strength.level * strength.ranges.bits), tf.uint8)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, gone), gone)


def _solarize(image, strength):
    threshold = 256.0 * (1.0 - strength.level)
    return tf.where(tf.cast(image, tf.float32) >= threshold, 255 - image, image)


def _autocontrast(image, strength):
    del strength
    low = tf.cast(tf.reduce_min(image, axis=[0, 1]), tf.float32)
    high = tf.cast(tf.reduce_max(image, axis=[0, 1]), tf.float32)
    scale = tf.where(high > low, 255.0 / tf.maximum(high - low, 1.0), 1.0)
    offset = tf.where(high > low, -low * scale, 0.0)
    stretched = tf.cast(image, tf.float32) * scale + offset
    # Rounding leaves whole numbers a little below themselves.
    return tf.cast(tf.clip_by_value(stretched + 1e-3, 0.0, 255.0), tf.uint8)


def _equalize(image, strength):
    """As Pillow's `ImageOps.equalize`: the cumulative histogram of each channel, in steps of
    (pixels without those of the last value) / 255."""
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
    """Where each pixel comes from: `x' = ax + by + c`, `y' = dx + ey + f`, in coordinates in which
    a pixel's centre is at a half, as Pillow's `Image.transform` has them."""
    a, b, c, d, e, f = (tf.convert_to_tensor(value, tf.float32) for value in matrix)
    # TensorFlow's coordinates have a pixel's centre at a whole number.
    c, f = c + (a + b - 1.0) / 2.0, f + (d + e - 1.0) / 2.0
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=tf.stack([a, b, c, d, e, f, 0.0, 0.0])[None],
        output_shape=tf.shape(image)[:2],
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=fill,
    )
    return moved[0]


def _rotate(image, strength):
    angle = strength.sign * strength.level * (strength.ranges.rotate * math.pi / 180.0)
    cos, sin = tf.cos(angle), tf.sin(angle)
    size = tf.cast(tf.shape(image), tf.float32)
    y, x = size[0] / 2.0, size[1] / 2.0
    matrix = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    return _transform(image, matrix, strength.ranges.fill)


def _shear_x(image, strength):
    shear = strength.sign * strength.level * strength.ranges.shear
    return _transform(image, (1.0, shear, 0.0, 0.0, 1.0, 0.0), strength.ranges.fill)


def _shear_y(image, strength):
    shear = strength.sign * strength.level * strength.ranges.shear
    return _transform(image, (1.0, 0.0, 0.0, shear, 1.0, 0.0), strength.ranges.fill)


def _translation(size: tf.Tensor, strength: Strength) -> tf.Tensor:
    """In whole pixels."""
    most = strength.ranges.translate * tf.cast(size, tf.float32) + strength.ranges.translate_pixels
    return tf.round(strength.sign * strength.level * most)


def _translate_x(image, strength):
    pixels = _translation(tf.shape(image)[1], strength)
    return _transform(image, (1.0, 0.0, pixels, 0.0, 1.0, 0.0), strength.ranges.fill)


def _translate_y(image, strength):
    pixels = _translation(tf.shape(image)[0], strength)
    return _transform(image, (1.0, 0.0, 0.0, 0.0, 1.0, pixels), strength.ranges.fill)


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
