"""The train step: the same weights on any number of replicas, one trace, all or nothing."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import strategy_of, with_data, with_model, with_optimizer
from tests.step_runs import Run, furthest, relative, with_sync_batch_norm
from trainer.config import Config
from trainer.data.pipeline import eval_dataset
from trainer.step import train_step as steps
from trainer.step.eval_step import make_eval_loop

# Float rounding: sums in another order, and 20 steps that amplify it. A wrong divisor, by contrast,
# is off by a factor (see test_a_local_divisor_is_detected).
_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def config(small_config) -> Config:
    return small_config


@pytest.fixture(scope="module")
def one_replica(config, digits):
    run = Run(config, digits, strategy_of(1))
    return run, run.train(20)


class _Noisy:
    """Digits with noise, to compare different ways of computing a step over 20 steps.

    Without noise, the black around a digit is one value in many pixels, which cross ReLU's kink
    together. Then even two runs on one replica whose weights differ by 1e-7 differ by 1e-2 some
    steps later.
    """

    def __init__(self, source):
        self.class_names, self.channels = source.class_names, source.channels
        self.image_shape = source.image_shape
        self._source = source
        shape = (len(source), *source.image_shape)
        self._noise = tf.constant(np.random.default_rng(0).integers(0, 128, shape, np.uint8))

    def __len__(self):
        return len(self._source)

    def fetch(self, indices):
        images, labels = self._source.fetch(indices)
        return images // 2 + tf.gather(self._noise, indices), labels


@pytest.fixture(scope="module")
def noisy_on_one_replica(digits_config, digits):
    # No black (see _Noisy), and a learning rate at which training does not magnify rounding.
    config = with_data(digits_config, crop="none", pad=0, image_size=8)
    config = with_optimizer(config, learning_rate=0.02)
    run = Run(dataclasses.replace(config, ema_decay=0.9), _Noisy(digits), strategy_of(1))
    return run, run.train(20)


@pytest.mark.parametrize("num_replicas", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_replicas_end_in_the_same_weights(noisy_on_one_replica, num_replicas):
    """ResNet-20, SyncBN, 20 steps: losses, weights, statistics, averages."""
    reference, expected = noisy_on_one_replica
    run = Run(reference.config, reference.source, strategy_of(num_replicas))
    metrics = run.train(20)
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=_TOLERANCE)
    np.testing.assert_array_equal(metrics.accuracy, expected.accuracy)
    assert furthest(run, reference) < _TOLERANCE
    average = zip(run.state.ema_model.variables, reference.state.ema_model.variables, strict=True)
    assert max(relative(a.numpy(), b.numpy()) for a, b in average) < _TOLERANCE
    for variable in run.state.variables:  # bit-identical on every replica
        first, *others = run.strategy.experimental_local_results(variable)
        for other in others:
            np.testing.assert_array_equal(first, other)


@pytest.mark.slow
@pytest.mark.parametrize("num_replicas", [2, 4])
def test_replicas_see_the_same_losses_on_the_default(digits_config, digits, num_replicas):
    """The default recipe itself, during the steps before rounding grows (see _Noisy)."""
    losses = [Run(digits_config, digits, strategy_of(n)).train(8).loss for n in (1, num_replicas)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=_TOLERANCE)


def test_a_local_divisor_is_detected(config, digits, one_replica, monkeypatch):
    """Plants the mistake of tf#55321: a replica divides its loss by its own number of examples."""
    reference, expected = one_replica
    original = steps.softmax_cross_entropy

    def divided_locally(logits, labels, smoothing):
        # The step divides by the global batch: times global over local is division by the local.
        return original(logits, labels, smoothing) * (64 / logits.shape[0])

    run = Run(config, digits, strategy_of(2))
    monkeypatch.setattr(steps, "softmax_cross_entropy", divided_locally)
    metrics = run.train(20)
    assert np.abs(metrics.loss / expected.loss - 1).max() > 100 * _TOLERANCE
    assert furthest(run, reference) > 100 * _TOLERANCE


def test_all_lengths_share_one_trace_and_one_sequence(config, digits, one_replica):
    reference, expected = one_replica
    run = Run(config, digits, strategy_of(1))
    losses = np.concatenate([run.train(length).loss for length in (1, 7, 2, 10)])
    assert run.loop.experimental_get_tracing_count() == 1
    np.testing.assert_allclose(losses, expected.loss, rtol=1e-5)
    assert run.state.global_step.numpy() == reference.state.global_step.numpy() == 20


def test_the_metrics_are_those_of_the_batch(config, digits):
    """Compares with an eager step: loss, accuracy, gradient norm, learning rate, update."""
    config = with_optimizer(config, clip_norm=0.5, warmup_epochs=0.0)
    run = Run(config, digits, strategy_of(1))
    twin = Run(config, digits, strategy_of(1))
    images, labels = next(twin.iterator)
    weights = twin.state.model.trainable_variables
    before = [v.numpy().astype(np.float64) for v in weights]
    with tf.GradientTape() as tape:
        x = (tf.cast(images, tf.float32) / 255 - config.data.mean[0]) / config.data.std[0]
        logits = twin.state.model(x, training=True)
        target = tf.one_hot(labels, 10) * 0.9 + 0.01
        loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(target, logits))
    gradients = [g.numpy().astype(np.float64) for g in tape.gradient(loss, weights)]
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    metrics = run.train(1)
    assert metrics.loss[0] == pytest.approx(float(loss), rel=1e-5)
    assert metrics.accuracy[0] == np.mean(np.argmax(logits, -1) == labels)
    assert metrics.gradient_norm[0] == pytest.approx(norm, rel=1e-4)
    assert metrics.learning_rate[0] == pytest.approx(0.1)
    assert norm > 0.5, "clipping must do something here"
    for variable, w, g in zip(run.state.model.trainable_variables, before, gradients, strict=True):
        # Clip, decay kernels only, then Nesterov's first step: w -= lr (g + 0.9 g).
        decay = config.optimizer.weight_decay * w if w.ndim > 1 else 0
        expected = w - 0.1 * 1.9 * (g * (0.5 / norm) + decay)
        assert relative(variable.numpy(), expected) < 1e-4


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_accumulation_is_the_big_batch(config, digits, num_replicas):
    """Without batch norm, whose statistics are by definition those of a micro-batch."""
    linear = with_model(config, "linear")
    whole, parts = (
        Run(dataclasses.replace(linear, accumulation_steps=n), digits, strategy_of(num_replicas))
        for n in (1, 4)
    )
    expected, metrics = whole.train(10), parts.train(10)
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=1e-5)
    assert furthest(parts, whole) < 1e-5


def test_without_sync_batch_norm_replicas_keep_equal_statistics(config, digits):
    config = with_sync_batch_norm(config, False)
    run = Run(config, digits, strategy_of(2))
    run.train(3)
    statistics = run.state.model.non_trainable_variables
    for variable in statistics:
        first, second = run.strategy.experimental_local_results(variable)
        np.testing.assert_array_equal(first, second)
    synchronized = Run(with_sync_batch_norm(config, True), digits, strategy_of(2))
    synchronized.train(3)
    assert furthest(run, synchronized) > _TOLERANCE  # a different computation


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_an_overflow_skips_the_whole_step(config, digits, num_replicas):
    config = dataclasses.replace(config, precision="mixed_float16", initial_loss_scale=2.0**14)
    run = Run(config, digits, strategy_of(num_replicas))
    run.train(2)
    assert run.state.applied_steps.numpy() == 2
    run.state.loss_scale.assign(float("inf"))  # the next gradient overflows
    before = run.variables()
    metrics = run.train(1)
    assert metrics.applied[0] == 0
    after = run.variables()
    counters = {run.state.global_step.name, run.state.loss_scale.name, run.state.good_steps.name}
    changed = {n for n in before if not np.array_equal(before[n], after[n], equal_nan=True)}
    assert {n.partition(" ")[2] for n in changed} <= counters
    run.state.loss_scale.assign(2.0**14)
    run.train(1)
    assert run.state.applied_steps.numpy() == 3


def test_the_loss_scale_halves_on_overflow_and_doubles_after_a_row(monkeypatch):
    monkeypatch.setattr(steps, "LOSS_SCALE_GROWTH_STEPS", 3)
    scale, good = tf.Variable(8.0), tf.Variable(0, dtype=tf.int64)
    history = []
    for finite in (True, True, False, True, True, True, True, False, False, False, False, False):
        steps._update_loss_scale(scale, good, tf.constant(finite))
        history.append(float(scale))
    assert history == [8, 8, 4, 4, 4, 8, 8, 4, 2, 1, 1, 1]  # and never below 1


@pytest.mark.slow
def test_evaluating_the_average_leaves_the_weights_alone(config, digits):
    run = Run(config, digits, strategy_of(2))
    run.train(3)
    before = run.variables()
    dataset = run.strategy.distribute_datasets_from_function(
        lambda context: eval_dataset(config, digits, context)
    )
    totals = [
        make_eval_loop(config, run.strategy, model)(iter(dataset), tf.constant(2))
        for model in (run.state.model, run.state.ema_model)
    ]
    assert float(totals[0].loss) != float(totals[1].loss)  # they are two models
    after = run.variables()
    for name, value in before.items():
        assert after[name].tobytes() == value.tobytes(), name


def test_the_average_follows_its_closed_form(config, digits):
    config = dataclasses.replace(config, ema_decay=0.5)
    run = Run(config, digits, strategy_of(1))
    expected = [v.numpy().astype(np.float64) for v in run.state.model.variables]
    for t in range(1, 5):
        run.train(1)
        decay = min(0.5, (1 + t) / (10 + t))
        expected = [
            decay * a + (1 - decay) * v.numpy()
            for a, v in zip(expected, run.state.model.variables, strict=True)
        ]
    for average, value in zip(run.state.ema_model.variables, expected, strict=True):
        assert relative(average.numpy(), value) < 1e-5
