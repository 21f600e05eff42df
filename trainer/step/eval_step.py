"""The evaluation that runs inside `tf.function`: every example counts exactly once."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from trainer.config import Config
from trainer.step.losses import softmax_cross_entropy
from trainer.step.normalize import normalize


class EvalTotals(NamedTuple):
    """Sums over all examples, float64 scalars."""

    loss: tf.Tensor  # cross-entropy without smoothing, in nats
    top1: tf.Tensor
    top5: tf.Tensor
    examples: tf.Tensor


def make_eval_loop(
    config: Config, strategy: tf.distribute.Strategy, model: tf_keras.Model
) -> Callable[[Iterator, tf.Tensor], EvalTotals]:
    """Returns the compiled loop `eval_loop(iterator, num_steps) -> EvalTotals`.

    `iterator` yields `(images, labels, weights)` for each replica. The weight of an example is 1.0,
    that of padding 0.0.
    """
    # With five classes or fewer, the right one is always among the top 5.
    k = min(5, config.model.num_classes)

    def replica_step(images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        logits = model(normalize(images, config), training=False)
        losses = softmax_cross_entropy(logits, labels)
        # The rank of the right class. Ties count against the model, so constant logits are wrong.
        right = tf.gather(logits, labels, batch_dims=1)[:, None]
        others = tf.one_hot(labels, config.model.num_classes, on_value=False, off_value=True)
        rank = tf.reduce_sum(tf.cast((logits >= right) & others, tf.int32), axis=-1)
        sane = tf.reduce_all(tf.math.is_finite(logits), axis=-1)  # no NaN is above another
        top1, top5 = (tf.cast((rank < top) & sane, tf.float32) for top in (1, k))
        columns = tf.stack([losses, top1, top5, tf.ones_like(losses)], axis=-1)
        # `where` instead of a product: the loss of padding may be infinite.
        return tf.reduce_sum(tf.where(weights[:, None] > 0, columns, 0.0), axis=0)

    @tf.function
    def eval_loop(iterator, num_steps):
        totals = tf.zeros([4], tf.float64)
        for _ in tf.range(num_steps):
            sums = strategy.run(replica_step, args=next(iterator))
            sums = strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)
            totals += tf.cast(sums, tf.float64)
        return EvalTotals(*tf.unstack(totals))

    return eval_loop
