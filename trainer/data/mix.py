"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): two images become two mixtures.

Only the examples at positions 2k and 2k+1 are mixed with each other: so a mixture is a function of
the position, and not of who else is in the batch.
"""

import numpy as np
import tensorflow as tf
from scipy import special

from trainer.config import Config
from trainer.data.order import uniform
from trainer.data.streams import Stream

_TABLE_SIZE = 4096


def mix(
    images: tf.Tensor, labels: tf.Tensor, positions: tf.Tensor, config: Config
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixtures and how much they hold of each class.

    Args:
        images: uint8 `[n, height, width, channels]`, n even.
        labels: int32 `[n]`.
        positions: int64 `[n]`, the first one even.

    Returns:
        uint8 `[n, height, width, channels]` and float32 `[n, classes]`, of sum 1 each.
    """
    pairs, seed = positions // 2, config.seed  # the two of a pair draw the same numbers
    one_hot = tf.one_hot(labels, config.model.num_classes)
    share = uniform(pairs, seed, Stream.MIXED_SHARE)
    mixups, cutmixes = None, None
    if config.augment.mixup:
        kept = beta_quantile(share, config.augment.mixup)
        mixups = _blend(images, kept), _mixture(one_hot, kept)
    if config.augment.cutmix:
        kept = beta_quantile(share, config.augment.cutmix)
        centers = (
            uniform(pairs, seed, Stream.CUTMIX_CENTER_Y),
            uniform(pairs, seed, Stream.CUTMIX_CENTER_X),
        )
        pasted, kept = _paste(images, kept, *centers)
        cutmixes = pasted, _mixture(one_hot, kept)
    if mixups is None or cutmixes is None:
        return mixups or cutmixes or (images, one_hot)
    is_mixup = uniform(pairs, seed, Stream.MIXUP_OR_CUTMIX) < 0.5
    return (
        tf.where(is_mixup[:, None, None, None], mixups[0], cutmixes[0]),
        tf.where(is_mixup[:, None], mixups[1], cutmixes[1]),
    )


def beta_quantile(probabilities: tf.Tensor, alpha: float) -> tf.Tensor:
    """The quantiles of Beta(α, α), from a table: of a uniform number, a number so distributed."""
    table = tf.constant(special.betaincinv(alpha, alpha, np.linspace(0, 1, _TABLE_SIZE + 1)))
    places = tf.cast(probabilities, tf.float64) * _TABLE_SIZE
    below = tf.minimum(tf.cast(places, tf.int32), _TABLE_SIZE - 1)
    low, high = tf.gather(table, below), tf.gather(table, below + 1)
    return tf.cast(low + (places - tf.cast(below, tf.float64)) * (high - low), tf.float32)


def _partners(values: tf.Tensor) -> tf.Tensor:
    """Rows 2k and 2k+1 exchanged."""
    pairs = tf.reshape(values, [-1, 2, *values.shape[1:]])
    return tf.reshape(tf.reverse(pairs, [1]), tf.shape(values))


def _mixture(one_hot: tf.Tensor, kept: tf.Tensor) -> tf.Tensor:
    return kept[:, None] * one_hot + (1.0 - kept[:, None]) * _partners(one_hot)


def _blend(images: tf.Tensor, kept: tf.Tensor) -> tf.Tensor:
    kept = kept[:, None, None, None]
    values = tf.cast(images, tf.float32)
    return tf.cast(tf.round(kept * values + (1.0 - kept) * _partners(values)), tf.uint8)


def _paste(images: tf.Tensor, kept: tf.Tensor, center_y: tf.Tensor, center_x: tf.Tensor):
    """A rectangle of the partner, at the same place, of about `1 - kept` of the area; and what is
    kept in fact, where the rectangle reached over the edge."""
    height, width = images.shape[1:3]
    side = tf.sqrt(1.0 - kept)
    rows, top_to_bottom = _span(center_y, side, height)
    columns, left_to_right = _span(center_x, side, width)
    inside = rows[:, :, None] & columns[:, None, :]
    pasted = tf.where(inside[..., None], _partners(images), images)
    return pasted, 1.0 - top_to_bottom * left_to_right


def _span(center: tf.Tensor, side: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Which of `size` pixels a stretch covers, bool `[n, size]`, and what share of them they are.

    Args:
        center, side: of the stretch, float32 `[n]`, as shares of the whole.
    """
    start = tf.cast(tf.floor((center - side / 2.0) * size + 0.5), tf.int32)[:, None]
    stop = start + tf.cast(tf.floor(side * size + 0.5), tf.int32)[:, None]
    pixels = tf.range(size)
    covered = (pixels >= start) & (pixels < stop)
    return covered, tf.reduce_mean(tf.cast(covered, tf.float32), axis=-1)
