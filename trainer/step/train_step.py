"""Everything that runs inside `tf.function`: the train loop and the eval loop.

One train step, on every replica (`replica_step`):

    for each micro-batch:  forward, backward, unscale, accumulate
    reduce once            gradients, loss, accuracy: summed over all replicas
    check                  the loss and the norm of the *reduced* gradient are finite: one decision,
                           the same everywhere
    clip, decay, update, EMA; or, where one is not finite, nothing at all

The loss of an example is divided by the *global* batch size and gradients are summed, so that any
number of replicas computes the same step.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import tensorflow as tf
import tf_keras
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from trainer.config import Config
from trainer.models.randomness import example_context
from trainer.models.stages import moving_statistics
from trainer.step.losses import softmax_cross_entropy
from trainer.step.optim import Schedule
from trainer.step.state import TrainState

# float16: the scale doubles after this many applied steps in a row (Micikevicius et al. 2018,
# section 3.2, with the interval that NVIDIA's and TensorFlow's implementations use).
LOSS_SCALE_GROWTH_STEPS = 2000

Compiled = Literal["nothing", "forward_backward", "step", "tpu"]


class TrainMetrics(NamedTuple):
    """What a train step reports; `[num_steps]` each when they come out of the loop."""

    loss: tf.Tensor  # mean over the global batch, before the update
    accuracy: tf.Tensor  # share of the global batch that is right, before the update
    learning_rate: tf.Tensor
    gradient_norm: tf.Tensor  # of the reduced gradient, before clipping
    loss_scale: tf.Tensor  # 1 where there is none
    applied: tf.Tensor  # 1, or 0 for a step skipped because its gradient is not finite
    bad_variable: tf.Tensor  # the last trainable variable whose gradient is not finite, or -1


ReplicaStep = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


class EvalTotals(NamedTuple):
    """Sums over all examples, float64 scalars."""

    loss: tf.Tensor  # cross-entropy without smoothing, in nats
    top1: tf.Tensor
    top5: tf.Tensor
    examples: tf.Tensor


def normalize(images: tf.Tensor, config: Config) -> tf.Tensor:
    """uint8 images `[batch, height, width, channels]` to float32 of the configured mean and std.

    On the device: images travel as bytes.
    """
    mean = tf.constant(config.data.mean) * 255.0
    std = tf.constant(config.data.std) * 255.0
    return (tf.cast(images, tf.float32) - mean) / std


def make_replica_step(
    config: Config,
    num_replicas: int,
    state: TrainState,
    schedule: Schedule,
    compiled: Compiled = "nothing",
) -> ReplicaStep:
    """`replica_step(step, images, labels)`: a train step as each replica does it, called in its
    replica context, with its share of the batch (see `make_train_loop`).

    `step`, an int64 scalar, counts from 0. The result is `[7]`, TrainMetrics of this step, the same
    on all replicas.

    Args:
        compiled: how much of it XLA compiles here: nothing; forward and backward of a micro-batch,
            with the reduction outside; or the whole step; on a `tpu`, TPUStrategy does so. See
            strategy.py.
    """
    global_batch_size = config.data.global_batch_size
    weights = state.model.trainable_variables
    statistics = moving_statistics(state.model)

    def forward_backward(step: tf.Tensor, first: tf.Tensor, images: tf.Tensor, labels: tf.Tensor):
        """One micro-batch, of the rows from `first` on of the global batch of `step`: its share of
        the global gradient, loss and accuracy."""
        with tf.GradientTape() as tape:
            with example_context(config.seed, step, first, global_batch_size):
                logits = state.model(normalize(images, config), training=True)
            losses = softmax_cross_entropy(logits, labels, config.label_smoothing)
            loss = tf.reduce_sum(losses) / global_batch_size
            scaled = loss if state.loss_scale is None else loss * state.loss_scale
        gradients = tape.gradient(scaled, weights)
        if state.loss_scale is not None:
            gradients = [gradient / state.loss_scale for gradient in gradients]
        classes = labels if labels.shape.rank == 1 else tf.argmax(labels, -1, tf.int32)
        right = tf.equal(tf.argmax(logits, -1, tf.int32), classes)
        accuracy = tf.reduce_sum(tf.cast(right, tf.float32)) / global_batch_size
        return gradients, loss, accuracy

    # The micro-batches share one trace, where no reduction between replicas forbids a function.
    if config.accumulation_steps > 1 and not (config.model.sync_batch_norm and num_replicas > 1):
        forward_backward = tf.function(forward_backward)

    def replica_step(step: tf.Tensor, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        # A copy, since forward passes move the statistics and a bad step must leave no trace.
        statistics_before = [tf.identity(variable) for variable in statistics]
        totals: Any = None
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        micro_batch_size = global_batch_size // num_replicas // config.accumulation_steps
        parts = (tf.split(batch, config.accumulation_steps) for batch in (images, labels))
        for index, micro_batch in enumerate(zip(*parts, strict=True)):
            number = replica * config.accumulation_steps + index  # of all micro-batches
            first = tf.cast(number * micro_batch_size, tf.int32)
            # One after the other: else all of them would start, and hold the activations of all at
            # once. XLA knows no control dependencies, and TensorFlow's executor no barriers.
            part = micro_batch
            if totals is not None and compiled in ("step", "tpu"):
                part, totals = _barrier((micro_batch, totals))
            with tf.control_dependencies([] if totals is None else tf.nest.flatten(totals)):
                values = forward_backward(step, first, *part)
            totals = values if totals is None else tf.nest.map_structure(tf.add, totals, values)
        gradients, loss, accuracy = totals

        # Without SyncBN each replica saw other statistics: their mean keeps the copies equal.
        uneven = [] if config.model.sync_batch_norm else [v / num_replicas for v in statistics]
        gradients, loss, accuracy, means = _sum_over_replicas(
            (gradients, loss, accuracy, uneven), num_replicas
        )

        squares = tf.stack([tf.nn.l2_loss(gradient) for gradient in gradients])  # half of each
        gradient_norm = tf.sqrt(2.0 * tf.reduce_sum(squares))
        finite = tf.math.is_finite(gradient_norm) & tf.math.is_finite(loss)
        left_out = tf.reduce_any(state.left_out == step)
        learning_rate = schedule(step) * state.rate_factor

        def apply() -> tuple[tf.Tensor, tf.Tensor]:
            clipped = gradients
            if config.optimizer.clip_norm is not None:
                factor = config.optimizer.clip_norm / tf.maximum(
                    gradient_norm, config.optimizer.clip_norm
                )
                clipped = [gradient * factor for gradient in gradients]
            if not config.model.sync_batch_norm:
                for variable, mean in zip(statistics, means, strict=True):
                    variable.assign(mean)
            state.optimizer.apply(weights, clipped, learning_rate)
            state.applied_steps.assign_add(1)
            _update_ema(config, state)
            return tf.constant(1.0), tf.constant(-1.0)

        def skip() -> tuple[tf.Tensor, tf.Tensor]:
            for variable, before in zip(statistics, statistics_before, strict=True):
                variable.assign(before)
            return tf.constant(0.0), _last_bad(squares)

        loss_scale = tf.constant(1.0) if state.loss_scale is None else tf.identity(state.loss_scale)
        applied, bad_variable = tf.cond(finite & ~left_out, apply, skip)
        if state.loss_scale is not None:
            _update_loss_scale(state.loss_scale, state.good_steps, finite)
        # Here each replica writes its copy. Outside of the replicas, in a function, TPUStrategy was
        # seen to write the first one alone.
        state.global_step.assign(step + 1)
        metrics = TrainMetrics(
            loss, accuracy, learning_rate, gradient_norm, loss_scale, applied, bad_variable
        )
        return tf.stack(metrics)  # one tensor leaves a device, not seven

    if compiled == "forward_backward":
        forward_backward = tf.function(forward_backward, jit_compile=True)
    elif compiled == "step":
        replica_step = tf.function(replica_step, jit_compile=True)

    return replica_step


def make_train_loop(
    config: Config,
    strategy: tf.distribute.Strategy,
    state: TrainState,
    schedule: Schedule,
    compiled: Compiled = "nothing",
) -> Callable[[Iterator, tf.Tensor], TrainMetrics]:
    """The compiled loop `train_loop(iterator, num_steps)`.

    `iterator` yields, for each replica, its share of the global batch: `(images, labels)`,
    uint8 `[per_replica_batch_size, height, width, channels]` and int32 `[per_replica_batch_size]`,
    or float32 `[per_replica_batch_size, classes]` of images that are mixed.
    `num_steps` is a tensor: one trace serves all lengths.
    """
    num_replicas = strategy.num_replicas_in_sync
    replica_step = make_replica_step(config, num_replicas, state, schedule, compiled)

    @tf.function
    def train_loop(iterator, num_steps):
        num_metrics = len(TrainMetrics._fields)
        rows = tf.TensorArray(tf.float32, size=num_steps, element_shape=(num_metrics,))
        first = tf.identity(state.global_step)
        for index in tf.range(num_steps):
            step = first + tf.cast(index, tf.int64)
            images, labels = next(iterator)
            metrics = strategy.run(replica_step, args=(step, images, labels))
            # All replicas return the same values: the first one's stand for all. No step waits for
            # them: they are read when the loop has ended.
            rows = rows.write(index, strategy.experimental_local_results(metrics)[0])
        return TrainMetrics(*tf.unstack(rows.stack(), num_metrics, axis=1))

    return train_loop


def _barrier(values):
    """The same structure of tensors: XLA computes nothing from one of them before it has all."""
    flat = gen_xla_ops.xla_optimization_barrier(tf.nest.flatten(values))
    return tf.nest.pack_sequence_as(values, flat)


def _last_bad(values: tf.Tensor) -> tf.Tensor:
    """The index of the last value that is not finite, as float32; -1 where all are finite."""
    indices = tf.range(tf.shape(values)[0])
    last = tf.reduce_max(tf.where(tf.math.is_finite(values), -1, indices))
    return tf.cast(last, tf.float32)


def _sum_over_replicas(values, num_replicas: int):
    """The structure of tensors summed over all replicas, in one call: one collective operation
    where the strategy can pack them."""
    if num_replicas == 1:
        return values
    context = tf.distribute.get_replica_context()
    flat = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.nest.flatten(values))
    return tf.nest.pack_sequence_as(values, flat)


def _update_ema(config: Config, state: TrainState) -> None:
    """`a += (1 - d)(w - a)` for weights and batch norm statistics, `d = min(decay, (1+t)/(10+t))`
    at the t-th applied step, so that the first weights are soon forgotten."""
    if state.ema_model is None:
        return
    steps = tf.cast(state.applied_steps, tf.float32)
    decay = tf.minimum(config.ema_decay, (1.0 + steps) / (10.0 + steps))
    for average, value in zip(state.ema_model.variables, state.model.variables, strict=True):
        average.assign_add((1.0 - decay) * (value - average))


def _update_loss_scale(scale: tf.Variable, good_steps: tf.Variable, finite: tf.Tensor) -> None:
    """Halves the scale after a step that is not finite, doubles it after a long row of others."""
    streak = tf.where(finite, good_steps + 1, tf.zeros_like(good_steps))
    grow = streak >= LOSS_SCALE_GROWTH_STEPS
    good_steps.assign(tf.where(grow, tf.zeros_like(streak), streak))
    scale.assign(tf.where(finite, tf.where(grow, scale * 2.0, scale), tf.maximum(scale / 2.0, 1.0)))


def make_eval_loop(
    config: Config, strategy: tf.distribute.Strategy, model: tf_keras.Model
) -> Callable[[Iterator, tf.Tensor], EvalTotals]:
    """The compiled loop `eval_loop(iterator, num_steps)`.

    `iterator` yields `(images, labels, weights)` for each replica; the weight of an example is 1.0,
    that of padding 0.0.
    """
    # Two classes have no top 5; the right one is then always among them.
    k = min(5, config.model.num_classes)

    def replica_step(images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        logits = model(normalize(images, config), training=False)
        losses = softmax_cross_entropy(logits, labels)
        # Rank of the right class: ties count against the model, so that constant logits are wrong.
        right = tf.gather(logits, labels, batch_dims=1)[:, None]
        others = tf.one_hot(labels, config.model.num_classes, on_value=False, off_value=True)
        rank = tf.reduce_sum(tf.cast((logits >= right) & others, tf.int32), axis=-1)
        sane = tf.reduce_all(tf.math.is_finite(logits), axis=-1)  # of NaNs, none is above another
        top1, top5 = (tf.cast((rank < top) & sane, tf.float32) for top in (1, k))
        columns = tf.stack([losses, top1, top5, tf.ones_like(losses)], axis=-1)
        # where, not a product: the padding's loss may be infinite.
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


def make_agreement(
    strategy: tf.distribute.Strategy,
) -> Callable[[Sequence[float]], Sequence[float]]:
    """A function that gives all workers the mean over them of each worker's numbers.

    What the host reads from its clock and its signals differs between workers; what it decides
    from them must not, or they would wait for each other for ever.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return lambda values: values

    @tf.function
    def agree(values: tf.Tensor) -> tf.Tensor:
        def replica_mean() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            # A copy on the replica's device: a tensor from outside is on none to reduce to.
            return context.all_reduce(tf.distribute.ReduceOp.MEAN, tf.identity(values))

        return strategy.experimental_local_results(strategy.run(replica_mean))[0]

    # float64: sums of whole numbers are exact, so that equal ones stay equal.
    return lambda values: agree(tf.constant(values, tf.float64)).numpy().tolist()
