"""From what a source holds to uint8 images of the model's size.

Every random choice is a function of the example's position (see order.py).
"""

import tensorflow as tf

from trainer.config import Config
from trainer.data.order import uniform

# One stream of random numbers for each choice; 0 is the order's.
_CROP_Y, _CROP_X, _FLIP, _CROP_BOX = 1, 2, 3, 4


def train_images(images: tf.Tensor, positions: tf.Tensor, config: Config, channels: int):
    """Augmented images for training.

    Args:
        images: uint8 `[n, height, width, channels]`, or encoded, string `[n]`.
        positions: int64 `[n]`, of the examples in the run.

    Returns:
        uint8 `[n, image_size, image_size, channels]`.
    """
    data = config.data
    if images.dtype == tf.string and data.crop == "random_resized":
        images = _map_encoded(
            lambda image, position: _random_resized_crop(image, position, config, channels),
            (images, positions),
            config,
            channels,
        )
    elif images.dtype == tf.string:
        images = eval_images(images, config, channels)
    else:
        images = _resize(images, data.image_size)
    if data.crop == "pad":
        images = _pad_and_crop(images, positions, config)
    if data.flip:
        flip = uniform(positions, config.seed, _FLIP) < 0.5
        images = tf.where(flip[:, None, None, None], tf.reverse(images, axis=[2]), images)
    return images


def eval_images(images: tf.Tensor, config: Config, channels: int):
    """Images for evaluation, as `train_images` without a random choice.

    Encoded images are resized and cropped in the centre, so that the crop has `eval_crop_ratio` of
    the shorter side.
    """
    if images.dtype != tf.string:
        return _resize(images, config.data.image_size)
    return _map_encoded(
        lambda image: _central_crop(image, config, channels), (images,), config, channels
    )


def _map_encoded(function, elements, config: Config, channels: int) -> tf.Tensor:
    size = config.data.image_size
    return tf.map_fn(
        lambda element: function(*element),
        elements,
        fn_output_signature=tf.TensorSpec([size, size, channels], tf.uint8),
    )


def _resize(images: tf.Tensor, size: int) -> tf.Tensor:
    if tuple(images.shape[-3:-1]) == (size, size):
        return images
    resized = tf.image.resize(images, [size, size], method="bilinear", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)


def _pad_and_crop(images: tf.Tensor, positions: tf.Tensor, config: Config) -> tf.Tensor:
    """Pads with zeros and crops back to the size at a random place (He et al. 2015, 4.2)."""
    pad, size = config.data.pad, config.data.image_size
    padded = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    places = 2 * pad + 1

    def pixels(stream: int) -> tf.Tensor:  # [n, size]: which rows, or columns, to take
        start = tf.cast(uniform(positions, config.seed, stream) * places, tf.int32)
        return start[:, None] + tf.range(size)

    rows = tf.gather(padded, pixels(_CROP_Y), axis=1, batch_dims=1)
    return tf.gather(rows, pixels(_CROP_X), axis=2, batch_dims=1)


def _random_resized_crop(
    image: tf.Tensor, position: tf.Tensor, config: Config, channels: int
) -> tf.Tensor:
    """8 to 100 % of the area, aspect ratio 3/4 to 4/3 (Szegedy et al. 2015, section 6); decodes
    only the crop where the format allows it."""
    shape = _image_shape(image, channels)
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        seed=tf.stack([tf.constant(config.seed * 8 + _CROP_BOX, tf.int64), position]),
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], axis=0)
    return _resize(_decode_crop(image, window, channels), config.data.image_size)


def _central_crop(image: tf.Tensor, config: Config, channels: int) -> tf.Tensor:
    shape = _image_shape(image, channels)
    shorter = tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)
    side = tf.cast(tf.round(shorter * config.data.eval_crop_ratio), tf.int32)
    window = tf.stack([(shape[0] - side) // 2, (shape[1] - side) // 2, side, side])
    return _resize(_decode_crop(image, window, channels), config.data.image_size)


def _image_shape(image: tf.Tensor, channels: int) -> tf.Tensor:
    return tf.cond(
        tf.io.is_jpeg(image),
        lambda: tf.io.extract_jpeg_shape(image),
        lambda: tf.shape(tf.io.decode_image(image, channels, expand_animations=False)),
    )


def _decode_crop(image: tf.Tensor, window: tf.Tensor, channels: int) -> tf.Tensor:
    def decode_all() -> tf.Tensor:
        decoded = tf.io.decode_image(image, channels, expand_animations=False)
        return tf.image.crop_to_bounding_box(decoded, *tf.unstack(window))

    crop = tf.cond(
        tf.io.is_jpeg(image),
        lambda: tf.io.decode_and_crop_jpeg(image, window, channels=channels),
        decode_all,
    )
    return tf.ensure_shape(crop, [None, None, channels])
