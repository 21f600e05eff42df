"""Losses per example; the caller divides by the global batch size."""

import tensorflow as tf


def softmax_cross_entropy(
    logits: tf.Tensor, labels: tf.Tensor, label_smoothing: float = 0.0
) -> tf.Tensor:
    """Computes the cross-entropy of each example, in nats.

    Args:
        logits: `[batch, classes]`, float32.
        labels: `[batch]`, the index of the right class; or float32 `[batch, classes]`, the share
            of each class.
        label_smoothing: the share of the target that is spread evenly over all classes (Szegedy et
            al. 2015b, section 7).

    Returns:
        `[batch]`, float32.
    """
    classes = logits.shape[-1]
    spread = label_smoothing / classes
    if labels.shape.rank == 1:
        on = 1.0 - label_smoothing + spread
        targets = tf.one_hot(labels, classes, on_value=on, off_value=spread)
    else:
        targets = (1.0 - label_smoothing) * labels + spread
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)
