"""Losses of each example; who calls them divides by the global batch."""

import tensorflow as tf


def softmax_cross_entropy(
    logits: tf.Tensor, labels: tf.Tensor, label_smoothing: float = 0.0
) -> tf.Tensor:
    """Cross-entropy of each example, in nats.

    Args:
        logits: `[batch, classes]`, float32.
        labels: `[batch]`, the index of the right class.
        label_smoothing: the share of the target spread evenly over all classes (Szegedy et al.
            2015b, section 7).

    Returns:
        `[batch]`, float32.
    """
    log_probabilities = tf.nn.log_softmax(logits)
    right = tf.gather(log_probabilities, labels, batch_dims=1)
    spread = tf.reduce_mean(log_probabilities, axis=-1)
    return -(1.0 - label_smoothing) * right - label_smoothing * spread
