"""Checks for every model: one of each family, the docs' model, or those of --model.

    PYTHONPATH=FOLDER python -m pytest tests/models/test_any_model.py --model=my_models.tinynet

checks a model of your own, FOLDER/my_models/tinynet.py.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import RECIPE, strategy_of
from tests.models.test_families import config_of, losses, weights
from tests.small_models import ONE_BLOCK, TINY_VGG, UNCONNECTED
from tests.step.test_host_loop import assert_no_host_work, with_options
from tests.step_runs import Run
from trainer.insight.anatomy import anatomy, watching
from trainer.models.build import build_model, family_of
from trainer.models.stages import stages_of
from trainer.models.weights import tensor_file
from trainer.models.weights.load import load_weights
from trainer.models.weights.names import torch_tensors

STEPS = 40


def check_that_it_learns(run: Run) -> None:
    """Trains in rounds of STEPS until the loss has fallen by 3 %: ten rounds at most, since a small
    net is slow and a loss near ln 10 varies by 1 % between steps."""
    found = losses(run, STEPS)
    while found[-4:].mean() >= 0.97 * found[:4].mean() and len(found) < 10 * STEPS:
        found = np.append(found, losses(run, STEPS))
    start, end = found[:4].mean(), found[-4:].mean()
    assert end < 0.97 * start, (
        f"the model does not learn: the loss went from {start:.3f} to {end:.3f} in {len(found)} "
        f"steps; expected: at most {0.97 * start:.3f} (each is the mean of 4 steps)"
    )


def test_a_net_of_one_block_learns(digits_config, digits):
    check_that_it_learns(Run(config_of(digits_config, ONE_BLOCK), digits, strategy_of(1)))


def test_a_net_whose_logits_ignore_the_image_does_not_learn(digits_config, digits):
    run = Run(config_of(digits_config, UNCONNECTED), digits, strategy_of(1))
    with pytest.raises(AssertionError, match=r"loss went from .* in 400 steps; expected: at most"):
        check_that_it_learns(run)


@pytest.mark.slow_except(RECIPE)
@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_a_model_trains_on_two_replicas(digits_config, digits, any_model, precision):
    config = config_of(digits_config, any_model, f"precision={precision}")
    run = Run(config, digits, strategy_of(2))
    before = {v.ref(): v.numpy() for v in run.state.model.variables}
    check_that_it_learns(run)
    # Every variable takes part.
    unmoved = [v.name for v in run.state.model.variables if np.all(v.numpy() == before[v.ref()])]
    assert unmoved == []


@pytest.mark.slow_except(RECIPE)
def test_two_replicas_and_one_train_the_same(digits_config, digits, any_model):
    settings = {"dropout": 0.2, "stochastic_depth": 0.3}
    known = getattr(family_of(any_model), "SETTINGS", ())
    dropping = (f"model.{name}={rate}" for name, rate in settings.items() if name in known)
    config = config_of(digits_config, any_model, *dropping)
    one, two = (Run(config, digits, strategy_of(n)) for n in (1, 2))
    start = weights(one)
    first, second = losses(one, 1), losses(two, 1)
    # After one step: later, rounding may put an activation near zero on either side of it.
    apart = np.linalg.norm(weights(one) - weights(two))
    assert apart < 1e-4 * np.linalg.norm(weights(one) - start)
    first, second = (np.append(a, losses(run, 3)) for a, run in ((first, one), (second, two)))
    # The last stage of tiny_vgg has one pixel: batch norm over 32 numbers magnifies rounding.
    np.testing.assert_allclose(first, second, rtol=1e-2 if any_model == TINY_VGG else 1e-3)


@pytest.mark.slow_except(RECIPE)
def test_a_frozen_stage_stays_as_it_is(digits_config, digits, any_model):
    config = config_of(digits_config, any_model)
    first, *others = stages_of(build_model(config, digits.channels))
    frozen = config_of(digits_config, any_model, f"model.freeze={first}")
    run = Run(frozen, digits, strategy_of(1))
    before = {v.ref(): v.numpy() for v in run.state.model.variables}
    losses(run, 2)
    moved = {
        stage: any(np.any(v.numpy() != before[v.ref()]) for one in layers for v in one.variables)
        for stage, layers in stages_of(run.state.model).items()
    }
    assert moved == {first: False, **dict.fromkeys(others, True)}


def test_its_anatomy_has_the_shapes_and_parameters_of_a_call(digits_config, any_model):
    config = config_of(digits_config, any_model, "data.image_size=32")
    model = build_model(config, channels=3)
    direct = {layer.name for layer in model.layers}
    shapes = {}

    def watch(layer, output):
        if layer.name in direct:
            shapes[layer.name] = tuple(output.shape[1:])

    with watching(watch):
        logits = model(tf.zeros([5, 32, 32, 3]), training=False)
    assert logits.shape == (5, 10)
    assert logits.dtype == tf.float32
    rows = anatomy(model, 32, channels=3)
    assert {row.name: row.output for row in rows}.items() <= shapes.items()
    trainable = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert sum(row.parameters for row in rows) == trainable


def test_its_weights_are_written_and_read_back(digits_config, any_model, tmp_path):
    path = tmp_path / "weights.safetensors"
    config = config_of(digits_config, any_model, f"model.weights={path}")
    model = build_model(config, channels=1)
    tensors = torch_tensors(any_model, model)
    assert len(tensors) == len(model.variables)
    tensor_file.write(path, tensors, {})
    other = build_model(dataclasses.replace(config, seed=config.seed + 1), channels=1)
    assert f"{len(tensors)} of {len(tensors)} tensors" in load_weights(
        config, other, list("0123456789")
    )
    for ours, theirs in zip(other.variables, model.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_it_leaves_the_host_alone(digits_config, any_model):
    options = (f"model.name={any_model}", "precision=mixed_bfloat16")
    assert_no_host_work(with_options(digits_config, options))
