"""The layers that the families' blocks are built from: convolutions with batch norm, and others.

Images are `[batch, height, width, channels]` throughout.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers

from trainer.config import ModelConfig
from trainer.models import randomness
from trainer.models.norm import BatchNorm

Activation = Callable[[tf.Tensor], tf.Tensor]


def _he_fan_out() -> tf_keras.initializers.Initializer:
    """He et al. 2015b, equation 15, with the fan-out: keeps the gradient's variance."""
    return tf_keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def hard_sigmoid(x: tf.Tensor) -> tf.Tensor:
    """`relu6(x + 3) / 6` (Howard et al. 2019, section 5.2)."""
    return tf.nn.relu6(x + 3.0) / 6.0


def hard_swish(x: tf.Tensor) -> tf.Tensor:
    """`x * relu6(x + 3) / 6` (Howard et al. 2019, section 5.2)."""
    return x * hard_sigmoid(x)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Returns the nearest multiple of `divisor`, or the next one if that is less than 90 % of
    `channels` (MobileNetV2's published code; Sandler et al. 2018)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def pad_evenly(x: tf.Tensor, kernel_size: int, stride: int) -> tf.Tensor:
    """Pads images for strided windows, by `(kernel_size - 1) / 2` on each side.

    TensorFlow's "same" pads strided convolutions unevenly, by an amount that depends on the image
    size. The papers' networks and all published weights pad evenly: pad first, then use "valid".
    """
    if stride == 1 or kernel_size == 1:
        return x
    side = (kernel_size - 1) // 2
    return tf.pad(x, [[0, 0], [side, side], [side, side], [0, 0]])


def conv(
    filters: int,
    kernel_size: int,
    stride: int,
    name: str,
    groups: int = 1,
    use_bias: bool = False,
) -> layers.Conv2D:
    """Returns a convolution. If strided, pad its input with `pad_evenly` first.

    It has no bias by default, since the batch norm behind it has one.
    """
    return (layers.Conv2D if groups == 1 else GroupedConv)(
        filters,
        kernel_size,
        stride,
        padding="same" if stride == 1 else "valid",
        groups=groups,
        use_bias=use_bias,
        kernel_initializer=_he_fan_out(),
        name=name,
    )


def depthwise_conv(kernel_size: int, stride: int, name: str) -> layers.DepthwiseConv2D:
    """Returns a depthwise convolution. If strided, pad its input with `pad_evenly` first."""
    return layers.DepthwiseConv2D(
        kernel_size,
        stride,
        padding="same" if stride == 1 else "valid",
        use_bias=False,
        depthwise_initializer=_he_fan_out(),
        name=name,
    )


class GroupedConv(layers.Conv2D):
    """A grouped convolution (Xie et al. 2017, figure 3c).

    Keras compiles grouped convolutions by XLA on all devices. On a CPU that takes a hundred times
    as long as TensorFlow's own kernel (ResNeXt-50's second convolution, forward and backward).
    """

    def call(self, inputs):
        return tf.nn.conv2d(inputs, self.kernel, self.strides, self.padding.upper())


def norm(config: ModelConfig, name: str, gamma_initializer: str = "ones") -> BatchNorm:
    """Returns batch norm with the config's constants."""
    return BatchNorm(
        config.batch_norm_momentum,
        config.batch_norm_epsilon,
        config.sync_batch_norm,
        gamma_initializer,
        name=name,
    )


class ConvNorm(layers.Layer):
    """A convolution, batch norm and an activation (unless it is None).

    `[batch, height, width, channels]` -> `[batch, ⌈height/stride⌉, ⌈width/stride⌉, filters]`.

    Args:
        filters: output channels; None for a depthwise convolution, which keeps the input's.
    """

    def __init__(
        self,
        config: ModelConfig,
        filters: int | None,
        kernel_size: int,
        stride: int = 1,
        activation: Activation | None = tf.nn.relu,
        gamma_initializer: str = "ones",
        groups: int = 1,
        use_bias: bool = False,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.kernel_size, self.stride, self.activation = kernel_size, stride, activation
        if filters is None:
            self.conv = depthwise_conv(kernel_size, stride, name="conv")
        else:
            self.conv = conv(filters, kernel_size, stride, "conv", groups, use_bias)
        self.norm = norm(config, "norm", gamma_initializer)

    def call(self, x, training=False):
        x = self.conv(pad_evenly(x, self.kernel_size, self.stride))
        x = self.norm(x, training=training)
        return x if self.activation is None else self.activation(x)


class SqueezeExcite(layers.Layer):
    """Scales channels by a gate that is computed from their means (Hu et al. 2018, eq. 2 to 4).

    `[batch, height, width, channels]` in and out.

    Args:
        squeezed: the number of channels between `reduce` and `expand`.
        gate: the sigmoid of equation 3.
    """

    def __init__(self, squeezed: int, gate: Activation = tf.nn.sigmoid, name: str | None = None):
        super().__init__(name=name)
        self.squeezed, self.gate = squeezed, gate
        self.reduce = conv(squeezed, 1, 1, "reduce", use_bias=True)

    def build(self, input_shape):
        self.expand = conv(input_shape[-1], 1, 1, "expand", use_bias=True)
        super().build(input_shape)

    def call(self, x, training=False):
        del training
        means = tf.reduce_mean(x, axis=[1, 2], keepdims=True)
        return x * self.gate(self.expand(tf.nn.relu(self.reduce(means))))


class BlurPool(layers.Layer):
    """Halves images without aliasing: blurs with the binomial filter `[1, 2, 1] / 4` in each
    direction, then takes every second pixel (Zhang 2019, section 3.2). Reflects at the edges.

    `[batch, height, width, channels]` -> `[batch, ⌈height/2⌉, ⌈width/2⌉, channels]`.
    """

    def call(self, x, training=False):
        del training
        channels = x.shape[-1]
        # One pixel cannot be reflected; repeat it.
        mode = "REFLECT" if min(x.shape[1:3]) > 1 else "SYMMETRIC"
        x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], mode)
        weights = np.outer([1, 2, 1], [1, 2, 1])[:, :, None, None] / 16
        kernel = tf.constant(np.tile(weights, [1, 1, channels, 1]), x.dtype)
        return tf.nn.depthwise_conv2d(x, kernel, [1, 2, 2, 1], "VALID")


class StochasticDepth(layers.Layer):
    """In training, drops a branch for whole examples: 0 with probability `rate`, else the branch
    divided by `1 - rate`, so that evaluation needs no factor (Huang et al. 2016, section 3,
    rescaled in training as most code does).

    `[batch, …]` in and out. Draws from the stream `stream` (randomness.py).
    """

    def __init__(self, rate: float, stream: int, name: str | None = None):
        super().__init__(name=name)
        self.rate, self.stream = rate, stream

    def call(self, x, training=False):
        if not training or self.rate == 0:
            return x
        numbers = randomness.uniform(tf.shape(x)[0], [1] * (x.shape.rank - 1), self.stream)
        return x * tf.cast(numbers >= self.rate, x.dtype) / (1.0 - self.rate)


class Dropout(layers.Layer):
    """In training, sets numbers to 0 with probability `rate` and divides the others by `1 - rate`
    (Srivastava et al. 2014).

    `[batch, …]` in and out. Draws from the stream `stream` (randomness.py).
    """

    def __init__(self, rate: float, stream: int, name: str | None = None):
        super().__init__(name=name)
        self.rate, self.stream = rate, stream

    def call(self, x, training=False):
        if not training or self.rate == 0:
            return x
        numbers = randomness.uniform(tf.shape(x)[0], x.shape[1:], self.stream)
        return x * tf.cast(numbers >= self.rate, x.dtype) / (1.0 - self.rate)


def classifier(config: ModelConfig) -> layers.Dense:
    """Returns the last layer, `head`: `[batch, features]` -> float32 logits `[batch, classes]`.

    It computes in float32 at any precision, since softmax and loss lose too much in half precision.
    Its weights start uniform in ±1/sqrt(fan_in), as torchvision's do.
    """
    return layers.Dense(
        config.num_classes,
        kernel_initializer=tf_keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
        dtype="float32",
        name="head",
    )
