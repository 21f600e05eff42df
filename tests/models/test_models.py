"""ResNets, compared with the paper, published counts and plain TensorFlow; batch norm by NumPy."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.conftest import strategy_of, with_data
from trainer.config import Config, ModelConfig
from trainer.models.build import build_model
from trainer.models.norm import BatchNorm
from trainer.models.resnet import Block, Variant


def _config(name="resnet20", classes=10, size=32, **changes) -> Config:
    config = Config(model=ModelConfig(name=name, num_classes=classes), **changes)
    return with_data(config, image_size=size)


def _num_parameters(model) -> int:
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


@pytest.mark.parametrize(
    ("name", "count"),
    [  # torchvision's documentation, "num_params" of each weight table
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ],
)
def test_parameter_counts_are_the_published_ones(name, count):
    model = build_model(_config(name, classes=1000, size=64), channels=3)
    assert _num_parameters(model) == count


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_cifar_parameter_counts_follow_the_closed_form(depth):
    n = (depth - 2) // 6
    conv = lambda inputs, outputs, kernel: inputs * outputs * kernel**2 + 2 * outputs  # noqa: E731
    expected = conv(3, 16, 3) + 64 * 10 + 10
    inputs = 16
    for width in (16, 32, 64):
        expected += conv(inputs, width, 3) + (2 * n - 1) * conv(width, width, 3)
        expected += conv(inputs, width, 1) if inputs != width else 0
        inputs = width
    assert _num_parameters(build_model(_config(f"resnet{depth}"), channels=3)) == expected


def test_depths_count_the_weighted_layers_of_the_paper():
    for name in ("resnet18", "resnet50", "resnet20", "resnet32"):
        model = build_model(_config(name, classes=1000, size=32), channels=3)
        on_the_main_path = [
            v
            for v in model.trainable_variables
            if "kernel" in v.name and "projection" not in v.name
        ]
        assert len(on_the_main_path) == int(name.removeprefix("resnet"))


@pytest.mark.parametrize("name", ["resnet20", "resnet50", "resnet18"])
def test_shortcuts_project_exactly_where_the_shape_changes(name):
    model = build_model(_config(name, size=64), channels=3)
    projects = [[block.projection is not None for block in stage] for stage in model.stages]
    # The first block of a stage changes the size or the width, except in the first stage of basic
    # blocks: its width is that of the stem.
    first_changes = name == "resnet50"
    for stage, values in enumerate(projects):
        assert values == [first_changes or stage > 0] + [False] * (len(values) - 1)


BASIC, BOTTLENECK = (Variant(bottleneck, depths=()) for bottleneck in (False, True))


@pytest.mark.parametrize(("variant", "stride"), [(BASIC, 1), (BASIC, 2), (BOTTLENECK, 2)])
def test_a_block_is_equations_1_and_2_of_the_paper(variant, stride):
    tf_keras.mixed_precision.set_global_policy("float32")
    config = ModelConfig(zero_init_residual=False, batch_norm_epsilon=1e-3)
    block = Block(config, variant, 16, stride)
    x = tf.random.stateless_normal([2, 9, 9, 16], [1, 2])
    block(x)
    for index, variable in enumerate(block.variables):
        noise = tf.random.stateless_normal(variable.shape, [3, index])
        variable.assign(tf.abs(noise) + 0.5 if "variance" in variable.name else noise)

    def conv_norm(layer, x, stride, pad):
        kernel, (gamma, beta, mean, variance) = layer.conv.kernel, (
            layer.norm.gamma, layer.norm.beta, layer.norm.moving_mean, layer.norm.moving_variance
        )  # fmt: skip
        x = tf.nn.conv2d(x, kernel, stride, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
        return (x - mean) / tf.sqrt(variance + 1e-3) * gamma + beta

    layers = block.residual
    if variant is BASIC:
        residual = tf.nn.relu(conv_norm(layers[0], x, stride, 1))
        residual = conv_norm(layers[1], residual, 1, 1)
    else:
        residual = tf.nn.relu(conv_norm(layers[0], x, 1, 0))
        residual = tf.nn.relu(conv_norm(layers[1], residual, stride, 1))
        residual = conv_norm(layers[2], residual, 1, 0)
    shortcut = x if block.projection is None else conv_norm(block.projection, x, stride, 0)
    expected = tf.nn.relu(residual + shortcut)
    np.testing.assert_allclose(block(x), expected, rtol=1e-4, atol=1e-3)


def test_zero_init_makes_a_new_block_the_identity():
    tf_keras.mixed_precision.set_global_policy("float32")
    x = tf.nn.relu(tf.random.stateless_normal([2, 8, 8, 16], [1, 2]))
    np.testing.assert_array_equal(Block(ModelConfig(), BASIC, 16, 1)(x), x)
    ones = ModelConfig(zero_init_residual=False)
    assert np.abs(Block(ones, BASIC, 16, 1)(x) - x).max() > 0.1


def test_convolutions_start_he_normal_fan_out():
    model = build_model(_config("resnet18", classes=1000), channels=3)
    kernel = model.stages[3][1].residual[0].conv.kernel.numpy()  # 3x3, 512 to 512
    expected = np.sqrt(2 / (3 * 3 * 512))  # He et al. 2015b, equation 15
    assert kernel.std() == pytest.approx(expected, rel=0.01)
    assert kernel.mean() == pytest.approx(0, abs=expected / 100)
    assert np.mean(kernel**4) / kernel.var() ** 2 == pytest.approx(3, rel=0.02)  # not truncated


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_logits_and_variables_are_float32_at_any_precision(precision):
    model = build_model(_config(precision=precision), channels=3)
    assert model(tf.zeros([2, 32, 32, 3])).dtype == tf.float32
    assert {v.dtype for v in model.variables} == {tf.float32}
    inside = model.stem(tf.zeros([2, 32, 32, 3]))
    assert inside.dtype == tf_keras.mixed_precision.Policy(precision).compute_dtype


def test_the_initial_weights_are_a_function_of_the_seed():
    first, again = (build_model(_config(), channels=3) for _ in range(2))
    other = build_model(_config(seed=1), channels=3)
    for a, b in zip(first.variables, again.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(first.stem.conv.kernel.numpy() - other.stem.conv.kernel.numpy()).max() > 0.01


@pytest.mark.parametrize("num_replicas", [1, 2, 4])
def test_batch_norm_is_algorithm_1_on_the_global_batch(num_replicas):
    tf_keras.mixed_precision.set_global_policy("float32")
    strategy = strategy_of(num_replicas)
    x = np.random.default_rng(0).normal(3, 2, [8, 5, 5, 3]).astype(np.float32)
    weight = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    with strategy.scope():
        layer = BatchNorm(momentum=0.8, epsilon=1e-3, synchronized=True)
        layer.build((None, 5, 5, 3))
    layer.gamma.assign([0.5, 1.0, 2.0])
    layer.beta.assign([0.0, -1.0, 1.0])

    def replica(x, weight):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_sum(y * weight)
        gradients = tape.gradient(loss, [x, layer.gamma, layer.beta])
        return y, *gradients

    @tf.function
    def run():
        index = strategy.experimental_distribute_values_from_function
        size = 8 // num_replicas
        parts = [
            index(lambda c, v=v: tf.constant(v)[c.replica_id_in_sync_group * size :][:size])
            for v in (x, weight)
        ]
        return [strategy.experimental_local_results(v) for v in strategy.run(replica, parts)]

    y, dx, dgamma, dbeta = run()
    # The formulas in float64 (Ioffe & Szegedy 2015, algorithm 1 and the gradients of section 3).
    x64, w64 = x.astype(np.float64), weight.astype(np.float64)
    axes, m = (0, 1, 2), 8 * 5 * 5
    mean, variance = x64.mean(axes), x64.var(axes)
    hat = (x64 - mean) / np.sqrt(variance + 1e-3)
    gamma = np.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(np.concatenate(y), hat * gamma + [0.0, -1.0, 1.0], atol=1e-5)
    expected_dx = (
        gamma
        / np.sqrt(variance + 1e-3)
        * (w64 - w64.sum(axes) / m - hat * (w64 * hat).sum(axes) / m)
    )
    np.testing.assert_allclose(np.concatenate(dx), expected_dx, atol=1e-5)
    np.testing.assert_allclose(np.sum(dgamma, 0), (w64 * hat).sum(axes), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.sum(dbeta, 0), w64.sum(axes), rtol=1e-4, atol=1e-4)
    for local in strategy.experimental_local_results(layer.moving_mean):
        np.testing.assert_allclose(local, 0.2 * mean, rtol=1e-5)
    for local in strategy.experimental_local_results(layer.moving_variance):
        np.testing.assert_allclose(local, 0.8 + 0.2 * variance, rtol=1e-5)


def test_batch_norm_in_evaluation_uses_the_moving_statistics():
    tf_keras.mixed_precision.set_global_policy("float32")
    layer = BatchNorm(momentum=0.9, epsilon=1e-3, synchronized=True)
    layer.build((None, 2, 2, 2))
    layer.moving_mean.assign([1.0, -1.0])
    layer.moving_variance.assign([4.0, 9.0])
    x = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    expected = (x - [1.0, -1.0]) / np.sqrt(np.array([4.0, 9.0]) + 1e-3)
    np.testing.assert_allclose(layer(tf.constant(x)), expected, rtol=1e-5)
