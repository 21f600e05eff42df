"""The training that runs inside `tf.function`: one train step, and the loop of many.

One train step, on every replica (`replica_step`):

    for each micro-batch:  forward, backward, unscale, accumulate
    reduce once            gradients, loss and accuracy are summed over all replicas
    check                  are the loss and the norm of the *reduced* gradient finite? One decision,
                           the same everywhere
    clip, decay, update, EMA; or, if something is not finite, nothing at all

The loss of an example is divided by the *global* batch size and gradients are summed, so that any
number of replicas computes the same step.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import tensorflow as tf
import tf_keras
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from trainer.config import Config
from trainer.models.randomness import example_context
from trainer.models.stages import moving_statistics
from trainer.step.losses import softmax_cross_entropy
from trainer.step.normalize import normalize
from trainer.step.schedules import Schedule
from trainer.step.state import TrainState

# float16: the scale doubles after this many applied steps in a row (Micikevicius et al. 2018,
# section 3.2, with the interval that NVIDIA's and TensorFlow's implementations use).
LOSS_SCALE_GROWTH_STEPS = 2000

# How much of a train step XLA compiles here: nothing; forward and backward of a micro-batch, with
# the reduction outside; or the whole step. On a TPU, TPUStrategy compiles the step.
CompiledPart = Literal["nothing", "forward_backward", "step", "tpu"]

ReplicaStep = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


class TrainMetrics(NamedTuple):
    """The metrics of a train step; a loop returns `[num_steps]` of each."""

    loss: tf.Tensor  # mean over the global batch, before the update
    accuracy: tf.Tensor  # share of the global batch that is right, before the update
    learning_rate: tf.Tensor
    gradient_norm: tf.Tensor  # of the reduced gradient, before clipping
    loss_scale: tf.Tensor  # 1 without loss scaling
    applied: tf.Tensor  # 1, or 0 for a step skipped because its gradient is not finite
    bad_variable: tf.Tensor  # the last trainable variable whose gradient is not finite, or -1


class MicroBatch(NamedTuple):
    """A micro-batch's share of the global batch's gradients, loss and accuracy."""

    gradients: list[tf.Tensor]
    loss: tf.Tensor
    accuracy: tf.Tensor


def forward_backward(
    config: Config,
    model: tf_keras.Model,
    loss_scale: tf.Variable | None,
    step: tf.Tensor | int,
    first: tf.Tensor | int,
    images: tf.Tensor,
    labels: tf.Tensor,
) -> MicroBatch:
    """Computes the gradients of one micro-batch.

    Args:
        loss_scale: multiplies the loss before the backward pass; None without loss scaling. The
            gradients returned are unscaled.
        step: int64 scalar; the number of the global batch.
        first: int32 scalar; the row of the global batch that is the first of these images.
        images: uint8 `[n, height, width, channels]`.
        labels: int32 `[n]`, or float32 `[n, classes]` if images are mixed.
    """
    global_batch_size = config.data.global_batch_size
    with tf.GradientTape() as tape:
        with example_context(config.seed, step, first, global_batch_size):
            logits = model(normalize(images, config), training=True)
        losses = softmax_cross_entropy(logits, labels, config.label_smoothing)
        loss = tf.reduce_sum(losses) / global_batch_size
        scaled = loss if loss_scale is None else loss * loss_scale
    gradients = tape.gradient(scaled, model.trainable_variables)
    if loss_scale is not None:
        gradients = [gradient / loss_scale for gradient in gradients]
    classes = labels if labels.shape.rank == 1 else tf.argmax(labels, -1, tf.int32)
    right = tf.equal(tf.argmax(logits, -1, tf.int32), classes)
    accuracy = tf.reduce_sum(tf.cast(right, tf.float32)) / global_batch_size
    return MicroBatch(gradients, loss, accuracy)


def make_replica_step(
    config: Config,
    num_replicas: int,
    state: TrainState,
    schedule: Schedule,
    compiled: CompiledPart = "nothing",
) -> ReplicaStep:
    """Returns `replica_step(step, images, labels)`, one replica's train step.

    Each replica calls it in its replica context with its share of the global batch (see
    `make_train_loop`). `step`, an int64 scalar, counts from 0. It returns the TrainMetrics of the
    step as one tensor `[7]`, the same on all replicas.
    """
    statistics = moving_statistics(state.model)
    micro_batch_size = config.data.global_batch_size // num_replicas // config.accumulation_steps

    def micro_batch(step, first, images, labels) -> MicroBatch:
        return forward_backward(config, state.model, state.loss_scale, step, first, images, labels)

    if compiled == "forward_backward":
        micro_batch = tf.function(micro_batch, jit_compile=True)
    elif config.accumulation_steps > 1 and not (config.model.sync_batch_norm and num_replicas > 1):
        # The micro-batches share one trace. A reduction between replicas cannot be in a function.
        micro_batch = tf.function(micro_batch)

    def accumulate(step: tf.Tensor, images: tf.Tensor, labels: tf.Tensor) -> MicroBatch:
        """Sums the micro-batches of this replica, one after the other.

        Without an order all of them would start, and hold the activations of all at once. XLA
        ignores control dependencies, and TensorFlow's executor ignores barriers.
        """
        totals: Any = None
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        parts = (tf.split(batch, config.accumulation_steps) for batch in (images, labels))
        for index, part in enumerate(zip(*parts, strict=True)):
            number = replica * config.accumulation_steps + index  # of all micro-batches
            first = tf.cast(number * micro_batch_size, tf.int32)
            if totals is not None and compiled in ("step", "tpu"):
                part, totals = _barrier((part, totals))  # noqa: PLW2901
            with tf.control_dependencies([] if totals is None else tf.nest.flatten(totals)):
                values = micro_batch(step, first, *part)
            totals = values if totals is None else tf.nest.map_structure(tf.add, totals, values)
        return totals

    def replica_step(step: tf.Tensor, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        # Copies, since forward passes move the statistics and a skipped step must not.
        before = [tf.identity(variable) for variable in statistics]
        micro_batches = accumulate(step, images, labels)

        # Without SyncBN each replica saw other statistics: their mean keeps the copies equal.
        uneven = [] if config.model.sync_batch_norm else [v / num_replicas for v in statistics]
        (gradients, loss, accuracy), means = _sum_over_replicas(
            (micro_batches, uneven), num_replicas
        )

        squares = tf.stack([tf.nn.l2_loss(gradient) for gradient in gradients])  # half of each
        gradient_norm = tf.sqrt(2.0 * tf.reduce_sum(squares))
        finite = tf.math.is_finite(gradient_norm) & tf.math.is_finite(loss)
        left_out = tf.reduce_any(state.left_out == step)
        learning_rate = schedule(step) * state.rate_factor

        def apply() -> tuple[tf.Tensor, tf.Tensor]:
            if not config.model.sync_batch_norm:
                _assign_all(statistics, means)
            _apply_gradients(config, state, gradients, gradient_norm, learning_rate)
            return tf.constant(1.0), tf.constant(-1.0)

        def skip() -> tuple[tf.Tensor, tf.Tensor]:
            _assign_all(statistics, before)
            return tf.constant(0.0), _last_bad(squares)

        loss_scale = tf.constant(1.0) if state.loss_scale is None else tf.identity(state.loss_scale)
        applied, bad_variable = tf.cond(finite & ~left_out, apply, skip)
        if state.loss_scale is not None:
            _update_loss_scale(state.loss_scale, state.good_steps, finite)
        # Here each replica writes its copy. In a function outside of the replicas, TPUStrategy was
        # seen to write only the first copy.
        state.global_step.assign(step + 1)
        metrics = TrainMetrics(
            loss, accuracy, learning_rate, gradient_norm, loss_scale, applied, bad_variable
        )
        return tf.stack(metrics)  # one tensor leaves a device, not seven

    return tf.function(replica_step, jit_compile=True) if compiled == "step" else replica_step


def make_train_loop(strategy: tf.distribute.Strategy, state: TrainState, step: ReplicaStep) -> Any:
    """Returns the compiled loop `train_loop(iterator, num_steps) -> TrainMetrics`.

    `iterator` yields, for each replica, its share of the global batch: `(images, labels)`,
    uint8 `[per_replica_batch_size, height, width, channels]` and int32 `[per_replica_batch_size]`,
    or float32 `[per_replica_batch_size, classes]` if images are mixed.
    `num_steps` is a tensor: one trace serves all lengths.
    """

    @tf.function
    def train_loop(iterator, num_steps):
        num_metrics = len(TrainMetrics._fields)
        rows = tf.TensorArray(tf.float32, size=num_steps, element_shape=(num_metrics,))
        first = tf.identity(state.global_step)
        for index in tf.range(num_steps):
            images, labels = next(iterator)
            metrics = strategy.run(step, args=(first + tf.cast(index, tf.int64), images, labels))
            # All replicas return the same values: the first one's stand for all. No step waits for
            # them: they are read when the loop has ended.
            rows = rows.write(index, strategy.experimental_local_results(metrics)[0])
        return TrainMetrics(*tf.unstack(rows.stack(), num_metrics, axis=1))

    return train_loop


def _apply_gradients(
    config: Config,
    state: TrainState,
    gradients: list[tf.Tensor],
    gradient_norm: tf.Tensor,
    learning_rate: tf.Tensor,
) -> None:
    """Clips by the global norm, updates the weights and their average."""
    if config.optimizer.clip_norm is not None:
        factor = config.optimizer.clip_norm / tf.maximum(gradient_norm, config.optimizer.clip_norm)
        gradients = [gradient * factor for gradient in gradients]
    state.optimizer.apply(state.model.trainable_variables, gradients, learning_rate)
    state.applied_steps.assign_add(1)
    _update_ema(config, state)


def _assign_all(variables, values) -> None:
    # With SyncBN there are no means to assign, and with frozen batch norm no statistics.
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _barrier(values):
    """Returns the same structure of tensors; XLA computes all of them before it uses any."""
    flat = gen_xla_ops.xla_optimization_barrier(tf.nest.flatten(values))
    return tf.nest.pack_sequence_as(values, flat)


def _last_bad(values: tf.Tensor) -> tf.Tensor:
    """Returns the index of the last value that is not finite, as float32; -1 if all are finite."""
    indices = tf.range(tf.shape(values)[0])
    last = tf.reduce_max(tf.where(tf.math.is_finite(values), -1, indices))
    return tf.cast(last, tf.float32)


def _sum_over_replicas(values, num_replicas: int):
    """Sums a structure of tensors over all replicas, in one call: one collective operation if the
    strategy can pack them."""
    if num_replicas == 1:
        return values
    context = tf.distribute.get_replica_context()
    flat = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.nest.flatten(values))
    return tf.nest.pack_sequence_as(values, flat)


def _update_ema(config: Config, state: TrainState) -> None:
    """`a += (1 - d)(w - a)` for weights and batch norm statistics, `d = min(decay, (1+t)/(10+t))`
    at the t-th applied step, so that the average soon forgets the initial weights."""
    if state.ema_model is None:
        return
    steps = tf.cast(state.applied_steps, tf.float32)
    decay = tf.minimum(config.ema_decay, (1.0 + steps) / (10.0 + steps))
    for average, value in zip(state.ema_model.variables, state.model.variables, strict=True):
        average.assign_add((1.0 - decay) * (value - average))


def _update_loss_scale(scale: tf.Variable, good_steps: tf.Variable, finite: tf.Tensor) -> None:
    """Halves the scale after a step that is not finite; doubles it after many finite ones."""
    streak = tf.where(finite, good_steps + 1, tf.zeros_like(good_steps))
    grow = streak >= LOSS_SCALE_GROWTH_STEPS
    good_steps.assign(tf.where(grow, tf.zeros_like(streak), streak))
    scale.assign(tf.where(finite, tf.where(grow, scale * 2.0, scale), tf.maximum(scale / 2.0, 1.0)))
