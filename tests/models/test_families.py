"""The families' layers and settings, and the random numbers of training."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.conftest import strategy_of
from tests.small_models import (
    FAMILIES,
    KERAS_NORM,
    TINY_BOTTLENECK,
    TINY_VGG,
)
from tests.step_runs import Run
from trainer import config as config_lib
from trainer.config import Config
from trainer.errors import UserError
from trainer.models import randomness
from trainer.models.build import build_model
from trainer.models.layers import BlurPool, Dropout, StochasticDepth, make_divisible
from trainer.models.vgg import adaptive_mean_pool


def config_of(digits_config: Config, name: str, *settings: str) -> Config:
    """Returns the digits recipe with this model."""
    size = 32 if name == TINY_VGG else 16
    constants = [f"model.name={name}", f"data.image_size={size}", "data.global_batch_size=32"]
    constants += ["optimizer.learning_rate=0.05", "optimizer.schedule=constant"]
    constants += ["optimizer.warmup_epochs=0"]
    return config_lib.override(digits_config, [*constants, *settings])


def losses(run: Run, steps: int) -> np.ndarray:
    return np.asarray(run.train(steps).loss)


def weights(run: Run) -> np.ndarray:
    return np.concatenate([np.ravel(v.numpy()) for v in run.state.model.trainable_variables])


@pytest.mark.slow
def test_dropped_branches_depend_on_the_step_and_not_on_the_parts(digits_config, digits):
    """A run with more micro-batches, and one from the middle, draw the same numbers."""
    settings = ("model.stochastic_depth=0.5", "model.dropout=0.5", "model.zero_init_residual=false")
    # Without batch norm's statistics, which differ between parts of a batch.
    settings += ("model.batch_norm_inference=true", "data.crop=none", "data.pad=0")
    config = config_of(digits_config, TINY_BOTTLENECK, *settings)
    whole = Run(config, digits, strategy_of(1))
    parts = Run(dataclasses.replace(config, accumulation_steps=4), digits, strategy_of(2))
    first, second = losses(whole, 3), losses(parts, 3)
    np.testing.assert_allclose(first, second, rtol=1e-4)
    other = config_lib.override(config, ["model.dropout=0.0", "model.stochastic_depth=0.0"])
    assert abs(losses(Run(other, digits, strategy_of(1)), 1)[0] - first[0]) > 1e-3


def test_replicas_agree_on_the_statistics_of_a_batch_norm_that_is_not_ours(digits_config, digits):
    config = config_of(digits_config, KERAS_NORM, "model.sync_batch_norm=false")
    run = Run(config, digits, strategy_of(2))
    losses(run, 3)
    for variable in run.state.model.variables:
        first, second = run.strategy.experimental_local_results(variable)
        np.testing.assert_array_equal(first, second)


# --- random numbers ---------------------------------------------------------------------------


def drawn(step: int, first: int, count: int, stream: int = 0, seed: int = 0, shape=(3,)):
    with randomness.example_context(seed, step, tf.constant(first), 64):
        return randomness.uniform(count, list(shape), stream).numpy()


def test_a_row_draws_the_same_numbers_in_any_part_of_the_batch():
    whole = drawn(7, 0, 64)
    np.testing.assert_array_equal(np.concatenate([drawn(7, n, 16) for n in (0, 16, 32, 48)]), whole)


def test_steps_streams_and_seeds_draw_independently():
    size = (4096,)
    samples = [
        drawn(step, 0, 64, stream, seed, size).ravel()
        for step, stream, seed in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    for index, sample in enumerate(samples):
        n = sample.size
        assert abs(sample.mean() - 0.5) < 4 * np.sqrt(1 / 12 / n)
        assert sample.min() >= 0
        assert sample.max() < 1
        for other in samples[:index]:
            assert abs(np.corrcoef(sample, other)[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.parametrize("layer", [StochasticDepth(0.25, 0), Dropout(0.25, 0)])
def test_dropping_keeps_the_expectation_and_evaluation_drops_nothing(layer):
    x = tf.ones([64, 8, 8, 4])
    with randomness.example_context(0, 3, 0, 64):
        y = layer(x, training=True).numpy()
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    whole_examples = all(len(np.unique(example)) == 1 for example in y)
    assert whole_examples == isinstance(layer, StochasticDepth)
    draws = 64 if whole_examples else y.size
    assert abs((y > 0).mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / draws)
    np.testing.assert_array_equal(layer(x, training=False), x)


def test_dropping_outside_of_its_context_is_an_error():
    with pytest.raises(RuntimeError, match=r"randomness\.example_context"):
        Dropout(0.5, 0)(tf.ones([2, 3]), training=True)


def test_stochastic_depth_grows_linearly_with_the_block():
    """Huang et al. 2016, equation 4: p_l = l / L times the last block's."""
    config = config_lib.override(Config(), ["model.stochastic_depth=0.2", "model.name=resnet50"])
    model = build_model(config, channels=3)
    rates = [block.drop.rate for stage in model.stages for block in stage]
    np.testing.assert_allclose(rates, 0.2 * np.arange(1, 17) / 16)
    streams = [block.drop.stream for stage in model.stages for block in stage]
    assert len({*streams, model.dropout.stream}) == 17


# --- layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_blur_pool_is_the_binomial_filter_at_every_second_pixel(size):
    x = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], "reflect" if size > 1 else "edge")
    weights = np.array([1, 2, 1]) / 4
    expected = np.zeros((2, -(-size // 2), -(-size // 2), 3))
    for i in range(expected.shape[1]):
        for j in range(expected.shape[2]):
            window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            expected[:, i, j] = np.einsum("nhwc,h,w->nc", window, weights, weights)
    np.testing.assert_allclose(BlurPool()(x), expected, atol=1e-6)


@pytest.mark.parametrize(("size", "wanted"), [(7, 7), (14, 7), (1, 7), (10, 7), (5, 3)])
def test_adaptive_pooling_is_the_mean_of_its_windows(size, wanted):
    x = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    ends = [(i * size // wanted, -(-(i + 1) * size // wanted)) for i in range(wanted)]
    expected = np.array([[x[:, a:b, c:d].mean((1, 2)) for c, d in ends] for a, b in ends])
    expected = expected.transpose(2, 0, 1, 3)
    np.testing.assert_allclose(adaptive_mean_pool(tf.constant(x), wanted), expected, atol=1e-6)


def test_widths_are_divisible_by_8_and_lose_no_tenth():
    assert [make_divisible(n) for n in (1, 16, 20, 22.4, 33.6, 44.8, 11)] == [
        *(8, 16, 24, 24, 32, 48, 16)
    ]
    for channels in np.arange(8, 400, 0.7):
        assert make_divisible(channels) % 8 == 0
        assert make_divisible(channels) >= 0.9 * channels


# --- settings ---------------------------------------------------------------------------------


def build(*settings: str, size: int = 32) -> tf_keras.Model:
    config = config_lib.override(Config(), [f"data.image_size={size}", *settings])
    return build_model(config, channels=3)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("vgg11_bn", "model.blur_pool=true"),
        ("vgg11_bn", "model.stochastic_depth=0.1"),
        ("mobilenetv2_100", "model.blur_pool=true"),
        ("wrn16_4", "model.blur_pool=true"),
    ],
)
def test_a_setting_that_a_family_lacks_is_refused(name, setting):
    field, _, value = setting.partition("=")
    with pytest.raises(UserError) as caught:
        build(f"model.name={name}", setting)
    assert f"{field} ({value.capitalize()}): {name} does not have it" in str(caught.value)


def test_vgg_refuses_small_images():
    with pytest.raises(
        UserError,
        match=r"data.image_size \(16\): must be at least 32 for vgg11_bn.*data.train_sizes",
    ):
        build("model.name=vgg11_bn", size=16)


def test_every_direct_layer_is_named_after_its_stage():
    for name in FAMILIES:
        model = build(f"model.name={name}")
        names = [layer.name for layer in model.layers]
        assert len(set(names)) == len(names)
        assert all(
            n.partition("_")[0].rstrip("0123456789") in ("stem", "stage", "head") for n in names
        )
