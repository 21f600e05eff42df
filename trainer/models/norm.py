"""Batch normalisation that computes the same on any number of replicas."""

import tensorflow as tf
import tf_keras


class BatchNorm(tf_keras.layers.Layer):
    """Batch normalisation (Ioffe & Szegedy 2015, algorithm 1) over the last axis.

    `[batch, height, width, channels]` in and out. Statistics are float32 at any precision.

    Keras' own layer keeps different moving variances in its fused and its synchronised form (one
    with Bessel's correction, one without), so a run on two replicas ends with other values than a
    run on one. Here both keep the biased variance of the batch, which also normalises it.
    Keras' moving statistics differ between replicas until a checkpoint averages them, so resuming
    changes them. Here they are ordinary mirrored variables: each replica writes its own copy, and
    the train step makes the copies equal if `synchronized` does not (step/train_step.py).

    If the layer is frozen (`trainable = False`) or its `inference` is set, it normalises by its
    moving statistics in training too, and leaves them as they are.

    Args:
        synchronized: compute the batch's statistics over all replicas (one all-reduce forward
            and one backward), not over each replica's part.
        gamma_initializer: "ones", or "zeros" for a block that starts as the identity.
    """

    def __init__(
        self,
        momentum: float,
        epsilon: float,
        synchronized: bool,
        gamma_initializer: str = "ones",
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.momentum = momentum
        self.epsilon = epsilon
        self.synchronized = synchronized
        self.gamma_initializer = gamma_initializer
        self.inference = False

    @property
    def updates_statistics(self) -> bool:
        """Whether a forward pass in training changes the statistics."""
        return self.trainable and not self.inference

    def build(self, input_shape):
        def weight(name: str, initializer: str, trainable: bool) -> tf.Variable:
            # An AutoCastVariable would return the scale in half precision.
            return self.add_weight(
                name=name,
                shape=input_shape[-1:],
                dtype=tf.float32,
                initializer=initializer,
                trainable=trainable,
                experimental_autocast=False,
            )

        self.gamma = weight("gamma", self.gamma_initializer, trainable=True)
        self.beta = weight("beta", "zeros", trainable=True)
        self.moving_mean = weight("moving_mean", "zeros", trainable=False)
        self.moving_variance = weight("moving_variance", "ones", trainable=False)
        super().build(input_shape)

    def call(self, inputs, training=False):
        if not training or not self.updates_statistics:
            return self._fused(inputs, training=False)[0]
        context = tf.distribute.get_replica_context()
        if self.synchronized and context is not None and context.num_replicas_in_sync > 1:
            outputs, mean, variance = self._synchronized(inputs, context)
        else:
            outputs, mean, variance = self._fused(inputs, training=True)
            # The kernel returns the unbiased variance: undo Bessel's correction.
            count = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
            variance *= (count - 1.0) / count
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(self.momentum * moving + (1.0 - self.momentum) * batch)
        return outputs

    def _fused(self, inputs, training: bool):
        return tf.compat.v1.nn.fused_batch_norm(
            inputs,
            self.gamma,
            self.beta,
            mean=None if training else self.moving_mean,
            variance=None if training else self.moving_variance,
            epsilon=self.epsilon,
            is_training=training,
        )

    def _synchronized(self, inputs, context):
        """Like `_fused`, with the moments of the global batch (equal parts on all replicas)."""
        values = tf.cast(inputs, tf.float32)
        axes = list(range(inputs.shape.rank - 1))
        moments = tf.stack([tf.reduce_mean(values, axes), tf.reduce_mean(tf.square(values), axes)])
        mean, mean_square = tf.unstack(
            context.all_reduce(tf.distribute.ReduceOp.SUM, moments) / context.num_replicas_in_sync
        )
        variance = tf.maximum(mean_square - tf.square(mean), 0.0)
        scale = tf.math.rsqrt(variance + self.epsilon) * self.gamma
        outputs = tf.cast(values * scale + (self.beta - mean * scale), inputs.dtype)
        return outputs, mean, variance
