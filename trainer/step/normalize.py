"""Normalisation of images, the same in training, evaluation and inspection."""

import tensorflow as tf

from trainer.config import Config


def normalize(images: tf.Tensor, config: Config) -> tf.Tensor:
    """Returns uint8 images `[batch, height, width, channels]` as float32, by `data.mean` and `std`.

    Called on the device, so that images travel there as bytes.
    """
    mean = tf.constant(config.data.mean) * 255.0
    std = tf.constant(config.data.std) * 255.0
    return (tf.cast(images, tf.float32) - mean) / std
