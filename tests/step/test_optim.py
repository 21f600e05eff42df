"""Losses, optimizers and schedules, compared with closed forms in float64."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from trainer.config import Config, OptimizerConfig
from trainer.step.losses import softmax_cross_entropy
from trainer.step.optim import OPTIMIZERS, make_optimizer
from trainer.step.schedules import make_schedule


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_its_definition(smoothing):
    logits = np.random.default_rng(0).normal(0, 5, [6, 4])
    labels = np.array([0, 1, 2, 3, 0, 1])
    target = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -(target * np.log(probabilities)).sum(-1)
    actual = softmax_cross_entropy(
        tf.constant(logits, tf.float32), tf.constant(labels, tf.int32), smoothing
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_a_mixture_is_the_mixture_of_cross_entropies(smoothing):
    """Cross-entropy is linear in the target."""
    random = np.random.default_rng(0)
    logits = tf.constant(random.normal(size=(6, 5)), tf.float32)
    labels, others = random.integers(0, 5, (2, 6))
    share = random.uniform(size=6)
    targets = share[:, None] * np.eye(5)[labels] + (1 - share)[:, None] * np.eye(5)[others]
    mixture = softmax_cross_entropy(logits, tf.constant(targets, tf.float32), smoothing)
    apart = [softmax_cross_entropy(logits, tf.constant(one), smoothing) for one in (labels, others)]
    np.testing.assert_allclose(mixture, share * apart[0] + (1 - share) * apart[1], rtol=1e-5)


def test_cross_entropy_of_large_logits_is_finite():
    logits = tf.constant([[1e4, 0.0], [0.0, 1e4]])
    np.testing.assert_allclose(softmax_cross_entropy(logits, tf.constant([0, 0])), [0, 1e4])


def _sgd(w, gradients, rates, config):
    momentum = np.zeros_like(w)
    for gradient, rate in zip(gradients, rates, strict=True):
        g = gradient
        if w.ndim > 1 and config.decoupled_weight_decay:
            w = w - rate * config.weight_decay * w
        elif w.ndim > 1:
            g = g + config.weight_decay * w
        momentum = config.momentum * momentum + g
        w = w - rate * (g + config.momentum * momentum if config.nesterov else momentum)
    return w


def _adamw(w, gradients, rates, config):
    mean, variance = np.zeros_like(w), np.zeros_like(w)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        if w.ndim > 1:
            w = w - rate * config.weight_decay * w
        mean = config.momentum * mean + (1 - config.momentum) * g
        variance = config.beta2 * variance + (1 - config.beta2) * g**2
        mean_hat = mean / (1 - config.momentum**t)
        variance_hat = variance / (1 - config.beta2**t)
        w = w - rate * mean_hat / (np.sqrt(variance_hat) + config.epsilon)
    return w


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sgd", {"nesterov": True}),
        ("sgd", {"nesterov": False}),
        ("sgd", {"decoupled_weight_decay": True}),
        ("adamw", {"beta2": 0.99}),
    ],
)
def test_updates_are_the_papers(name, changes):
    config = OptimizerConfig(name=name, weight_decay=0.1, **changes)
    random = np.random.default_rng(0)
    starts = [random.normal(size=shape) for shape in ((3, 4), (4,))]  # a kernel and a bias
    gradients = [[random.normal(size=w.shape) for w in starts] for _ in range(5)]
    rates = [0.1, 0.2, 0.3, 0.05, 0.01]
    variables = [tf.Variable(w, dtype=tf.float32) for w in starts]
    optimizer = make_optimizer(config, variables)
    for step, rate in zip(gradients, rates, strict=True):
        optimizer.apply(variables, [tf.constant(g, tf.float32) for g in step], tf.constant(rate))
    reference = {"sgd": _sgd, "adamw": _adamw}[name]
    for index, (variable, start) in enumerate(zip(variables, starts, strict=True)):
        expected = reference(start, [step[index] for step in gradients], rates, config)
        np.testing.assert_allclose(variable, expected, rtol=1e-4, atol=1e-6)


def test_every_optimizer_of_the_config_exists():
    annotation = OptimizerConfig.__dataclass_fields__["name"].type
    assert set(annotation.__args__) == set(OPTIMIZERS)


def _rates(**changes) -> np.ndarray:
    """Returns the learning rates of 100 steps in 10 epochs."""
    config = Config(num_epochs=10.0, optimizer=OptimizerConfig(learning_rate=0.5, **changes))
    schedule = make_schedule(config, steps_per_epoch=10.0, total_steps=100)
    return np.array([float(schedule(tf.constant(step, tf.int64))) for step in range(100)])


def test_schedules_are_their_formulas():
    steps = np.arange(100)
    np.testing.assert_allclose(_rates(schedule="constant"), 0.5)
    cosine = [0.25 * (1 + math.cos(math.pi * step / 100)) for step in steps]
    np.testing.assert_allclose(_rates(schedule="cosine"), cosine, rtol=1e-4, atol=1e-7)
    step = _rates(schedule="step", milestones=(3.0, 6.5), milestone_factor=0.1)
    np.testing.assert_allclose(
        step, np.where(steps < 30, 0.5, np.where(steps < 65, 0.05, 0.005)), rtol=1e-5
    )


def test_warmup_is_linear_and_ends_at_the_peak():
    rates = _rates(schedule="cosine", warmup_epochs=2.0)
    np.testing.assert_allclose(rates[:20] / 0.5, np.arange(1, 21) / 20, rtol=1e-5)
    after = [0.25 * (1 + math.cos(math.pi * step / 80)) for step in range(80)]
    np.testing.assert_allclose(rates[20:], after, rtol=1e-4, atol=1e-7)


def test_a_schedule_is_in_epochs():
    """With twice the batch and half the steps, the rate at an epoch is the same."""
    config = Config(num_epochs=10.0, optimizer=OptimizerConfig(warmup_epochs=2.0))
    few, many = make_schedule(config, 10.0, 100), make_schedule(config, 20.0, 200)
    for epoch in (2.0, 5.0, 9.0):
        rates = [float(s(tf.constant(int(epoch * n)))) for s, n in ((few, 10), (many, 20))]
        assert rates[0] == pytest.approx(rates[1], rel=1e-6)


def test_the_slots_belong_to_the_state():
    variables = [tf.Variable(tf.ones([2, 3])), tf.Variable(tf.ones([3]))]
    config = dataclasses.replace(OptimizerConfig(), name="adamw")
    assert len(make_optimizer(config, variables).variables) == 2 * 2 + 1
    assert len(make_optimizer(OptimizerConfig(), variables).variables) == 2
