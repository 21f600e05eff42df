"""Encoded images to uint8 images of the model's size: decode, crop, resize.

In evaluation, to the bits and the filter of Pillow, which weights from elsewhere were trained with:
the accurate DCT, and a bilinear filter as wide as the image shrinks. In training, faster: of a JPEG
the crop alone is decoded, at a half, a quarter or an eighth of its size where that is enough, which
libjpeg does inside the DCT; what is left to shrink, less than twice, is sampled bilinearly, as
TensorFlow's own recipes have it, or filtered with `data.antialias`.

EXIF orientation is left alone, as Pillow's `open` does.
"""

from collections.abc import Callable

import tensorflow as tf

from trainer.config import Config
from trainer.data.streams import Stream

# Where a BMP file of the usual header has its bits a pixel, and the second color of its palette.
_BMP_BITS, _BMP_PALETTE = 28, 58
_PALETTE_ADVICE = "a BMP with a palette of colours: save it as PNG"
_SCALES = (1, 2, 4, 8)  # 1 / what libjpeg can shrink an image to while it decodes it

# From an image's shape, int32 [3], to what is kept of it: [top, left, height, width].
ChooseWindow = Callable[[tf.Tensor], tf.Tensor]


def decode_train(
    encoded: tf.Tensor, position: tf.Tensor, config: Config, channels: int
) -> tf.Tensor:
    """One image, uint8 `[image_size, image_size, channels]`, cropped as the config says."""
    if config.data.crop != "random_resized":
        return decode_eval(encoded, config, channels)
    size = config.data.image_size
    seed = tf.stack([tf.constant(config.seed * 8 + Stream.RANDOM_RESIZED_CROP, tf.int64), position])

    def jpeg() -> tf.Tensor:
        window = _random_window(tf.io.extract_jpeg_shape(encoded), seed)
        crop = _decode_jpeg_window(encoded, window, size, channels)
        if config.data.antialias:
            return resize(crop, size)
        return _round_to_uint8(tf.image.resize(crop, [size, size], method="bilinear"))

    def other() -> tf.Tensor:
        return resize(_decode_other(encoded, lambda s: _random_window(s, seed), channels), size)

    image = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    return tf.ensure_shape(image, [size, size, channels])


def decode_eval(encoded: tf.Tensor, config: Config, channels: int) -> tf.Tensor:
    """One image, uint8 `[image_size, image_size, channels]`: the centre, `eval_crop_ratio` of the
    shorter side."""
    ratio = config.data.eval_crop_ratio
    crop = decode(encoded, lambda shape: _central_window(shape, ratio), channels)
    return resize(crop, config.data.image_size)


def resize(images: tf.Tensor, size: int) -> tf.Tensor:
    """uint8 `[…, height, width, channels]` to height and width `size`, antialiased."""
    if tuple(images.shape[-3:-1]) == (size, size):
        return images
    resized = tf.image.resize(images, [size, size], method="bilinear", antialias=True)
    return _round_to_uint8(resized)


def _round_to_uint8(images: tf.Tensor) -> tf.Tensor:
    """Rounded; of interpolated bytes, none is outside their range."""
    return tf.cast(images + 0.5, tf.uint8)


def _random_window(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """8 to 100 % of the area, aspect ratio 3/4 to 4/3 (Szegedy et al. 2015, section 6)."""
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        seed=seed,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        min_object_covered=0.0,  # else the whole image is the object, and a tenth the least
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], axis=0)


def _central_window(shape: tf.Tensor, ratio: float) -> tf.Tensor:
    shorter = tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)
    side = tf.maximum(tf.cast(tf.round(shorter * ratio), tf.int32), 1)
    return tf.stack([(shape[0] - side) // 2, (shape[1] - side) // 2, side, side])


def decode(encoded: tf.Tensor, choose_window: ChooseWindow, channels: int) -> tf.Tensor:
    """The window of an image that is chosen by its shape, uint8 `[height, width, channels]`."""

    def jpeg() -> tf.Tensor:
        window = choose_window(tf.io.extract_jpeg_shape(encoded))
        return tf.io.decode_and_crop_jpeg(
            encoded, window, channels=channels, dct_method="INTEGER_ACCURATE"
        )

    crop = tf.cond(
        tf.io.is_jpeg(encoded), jpeg, lambda: _decode_other(encoded, choose_window, channels)
    )
    return tf.ensure_shape(crop, [None, None, channels])


def decode_whole(encoded: tf.Tensor) -> tf.Tensor:
    """The whole image in colour, uint8 `[height, width, 3]`; an error where training has one."""
    return decode(encoded, lambda shape: tf.stack([0, 0, shape[0], shape[1]]), 3)


def _decode_other(encoded: tf.Tensor, choose_window: ChooseWindow, channels: int) -> tf.Tensor:
    """As `decode`, of all formats but JPEG.

    A BMP of 8 bits with a palette is an error: TensorFlow would take its numbers for colours.
    """
    image = tf.cond(
        _has_palette(encoded),
        # A way to fail with a message, and not an assertion: see below.
        lambda: tf.fill([1, 1, channels], tf.cast(tf.strings.to_number(_PALETTE_ADVICE), tf.uint8)),
        lambda: tf.io.decode_image(encoded, channels, expand_animations=False),
    )
    top, left, height, width = tf.unstack(choose_window(tf.shape(image)))
    # Not crop_to_bounding_box, whose assertions make a deterministic input serial.
    return image[top : top + height, left : left + width]


def _has_palette(encoded: tf.Tensor) -> tf.Tensor:
    """Whether this is a BMP of 8 bits a pixel whose palette is anything but a ramp of greys."""
    head = tf.strings.substr(tf.strings.join([encoded, bytes(64)]), 0, 64)
    bits = tf.strings.substr(head, _BMP_BITS, 2)
    second_color = tf.strings.substr(head, _BMP_PALETTE, 4)
    is_bmp = tf.strings.substr(head, 0, 2) == b"BM"
    return is_bmp & (bits == b"\x08\x00") & (second_color != b"\x01\x01\x01\x00")


def _decode_jpeg_window(
    encoded: tf.Tensor, window: tf.Tensor, size: int, channels: int
) -> tf.Tensor:
    """The window at the smallest scale at which it is still as large as `size`."""

    def at(scale: int) -> Callable[[], tf.Tensor]:
        return lambda: tf.io.decode_and_crop_jpeg(
            encoded, window // scale, channels=channels, ratio=scale
        )

    enough = [tf.reduce_min(window[2:]) >= scale * size for scale in _SCALES[1:]]
    return tf.switch_case(
        tf.reduce_sum(tf.cast(tf.stack(enough), tf.int32)), [at(scale) for scale in _SCALES]
    )
