"""Augmentation of training batches, on uint8 images of the model's size.

Every random choice is a function of the example's position (see order.py).
"""

import tensorflow as tf

from trainer.config import Config
from trainer.data.augment import augment, blend, draws, increase_contrast, saturate
from trainer.data.mix import mix
from trainer.data.order import uniform
from trainer.data.streams import Stream


def augment_batch(
    images: tf.Tensor, labels: tf.Tensor, positions: tf.Tensor, config: Config
) -> tuple[tf.Tensor, tf.Tensor]:
    """Crops, flips, augments and mixes images as configured.

    Args:
        images: uint8 `[n, image_size, image_size, channels]`.
        labels: int32 `[n]`.
        positions: of the examples in the run, int64 `[n]`.

    Returns:
        Images, as `images`; and labels, int32 `[n]` or, if images are mixed, float32
        `[n, classes]`.
    """
    if config.data.crop == "pad":
        images = _pad_and_crop(images, positions, config)
    if config.data.flip:
        images = _flip(images, uniform(positions, config.seed, Stream.FLIP) < 0.5)
    if config.augment.policy != "none":
        images = tf.map_fn(
            lambda pair: augment(*pair, config),
            (images, draws(positions, config)),
            fn_output_signature=tf.TensorSpec(images.shape[1:], tf.uint8),
        )
    if config.augment.color_jitter:
        images = _color_jitter(images, positions, config)
    if config.augment.erasing:
        images = _erase(images, positions, config)
    if config.augment.mixes:
        return mix(images, labels, positions, config)
    return images, labels


def _flip(images: tf.Tensor, flip: tf.Tensor) -> tf.Tensor:
    """Mirrors the images for which `flip`, bool `[n]`, is true.

    It reverses rows of pixels and gathers whole images, which are copies. `tf.where` on four axes
    works pixel by pixel and took 0.6 ms per image of 224 pixels.
    """
    count, height, width, channels = images.shape
    rows = tf.reverse(tf.reshape(images, [count * height, width, channels]), axis=[1])
    both = tf.concat([images, tf.reshape(rows, tf.shape(images))], axis=0)
    return tf.gather(both, tf.range(count) + tf.where(flip, count, 0))


def _pad_and_crop(images: tf.Tensor, positions: tf.Tensor, config: Config) -> tf.Tensor:
    """Pads with zeros and crops back to the size at a random place (He et al. 2015, 4.2)."""
    pad, size = config.data.pad, config.data.image_size
    padded = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    places = 2 * pad + 1

    def pixels(stream: int) -> tf.Tensor:  # [n, size]: which rows, or columns, to take
        start = tf.cast(uniform(positions, config.seed, stream) * places, tf.int32)
        return start[:, None] + tf.range(size)

    rows = tf.gather(padded, pixels(Stream.CROP_TOP), axis=1, batch_dims=1)
    return tf.gather(rows, pixels(Stream.CROP_LEFT), axis=2, batch_dims=1)


def _color_jitter(images: tf.Tensor, positions: tf.Tensor, config: Config) -> tf.Tensor:
    """Changes brightness, contrast and saturation, in this order; torchvision's is random."""

    def factors(stream: int) -> tf.Tensor:
        numbers = uniform(positions, config.seed, stream)
        return 1.0 + config.augment.color_jitter * (2.0 * numbers - 1.0)

    def jitter(values):
        image, brightness, contrast, saturation = values
        image = blend(0.0, image, brightness)
        return saturate(increase_contrast(image, contrast), saturation)

    return tf.map_fn(
        jitter,
        (images, factors(Stream.BRIGHTNESS), factors(Stream.CONTRAST), factors(Stream.SATURATION)),
        fn_output_signature=tf.TensorSpec(images.shape[1:], tf.uint8),
    )


def _erase(images: tf.Tensor, positions: tf.Tensor, config: Config) -> tf.Tensor:
    """Replaces a rectangle by the mean colour: 2 to 33 % of the area, aspect ratio 0.3 to 1 / 0.3
    (Zhong et al. 2020, section 3.2). Sides longer than the image's are cut, not drawn again."""
    height, width, channels = images.shape[1:]

    def draw(stream: int) -> tf.Tensor:
        return uniform(positions, config.seed, stream)

    area = 0.02 + (0.33 - 0.02) * draw(Stream.ERASED_AREA)
    aspect = 0.3 + (1 / 0.3 - 0.3) * draw(Stream.ERASED_ASPECT)
    erase = draw(Stream.ERASE) < config.augment.erasing

    def covered(share: tf.Tensor, stream: int, size: int) -> tf.Tensor:  # bool [n, size]
        length = tf.clip_by_value(tf.round(share * size), 1.0, float(size))
        start = tf.floor(draw(stream) * (size - length + 1.0))
        pixels = tf.range(size, dtype=tf.float32)
        return (pixels >= start[:, None]) & (pixels < (start + length)[:, None])

    rows = covered(tf.sqrt(area * aspect), Stream.ERASED_TOP, height)
    columns = covered(tf.sqrt(area / aspect), Stream.ERASED_LEFT, width)
    inside = rows[:, :, None] & columns[:, None, :] & erase[:, None, None]
    color = tf.constant([round(255 * value) for value in config.data.mean], tf.uint8)
    return tf.where(inside[..., None], tf.broadcast_to(color, [channels]), images)
