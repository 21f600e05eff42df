"""Residual networks (He et al. 2015, "Deep Residual Learning for Image Recognition").

Read it as the paper: a stem, stages of blocks, a classifier. ResNet-18 to -152 have the ImageNet
stem and four stages (table 1; stride on the 3x3 of a bottleneck, "v1.5", as torchvision and
NVIDIA train it); ResNet-20 to -110 have the CIFAR stem and three stages (section 4.2, with
projection shortcuts, the paper's option B).
"""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras
from tf_keras import layers

from trainer.config import Config
from trainer.models.norm import BatchNorm


def _conv(filters: int, kernel_size: int, stride: int, name: str) -> layers.Conv2D:
    """A convolution without bias (batch norm has one), padded by `(kernel_size - 1) / 2` a side.

    TensorFlow's "same" pads strided convolutions unevenly, by an amount that depends on the image
    size; the paper's networks, and every published weight, pad evenly: pad before, then "valid".
    """
    return layers.Conv2D(
        filters,
        kernel_size,
        stride,
        padding="same" if stride == 1 else "valid",
        use_bias=False,
        # He et al. 2015b, equation 15, fan-out: keeps the gradient's variance through the layers.
        kernel_initializer=tf_keras.initializers.VarianceScaling(
            2.0, "fan_out", "untruncated_normal"
        ),
        name=name,
    )


def _pad(x: tf.Tensor, kernel_size: int, stride: int) -> tf.Tensor:
    if stride == 1 or kernel_size == 1:
        return x
    side = (kernel_size - 1) // 2
    return tf.pad(x, [[0, 0], [side, side], [side, side], [0, 0]])


class ConvNorm(layers.Layer):
    """Convolution, batch norm and, unless `relu=False`, ReLU.

    `[batch, height, width, channels]` -> `[batch, ⌈height/stride⌉, ⌈width/stride⌉, filters]`.
    """

    def __init__(
        self,
        config: Config,
        filters: int,
        kernel_size: int,
        stride: int = 1,
        relu: bool = True,
        gamma_initializer: str = "ones",
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.kernel_size, self.stride, self.relu = kernel_size, stride, relu
        self.conv = _conv(filters, kernel_size, stride, name="conv")
        self.norm = BatchNorm(
            config.model.batch_norm_momentum,
            config.model.batch_norm_epsilon,
            config.sync_bn,
            gamma_initializer,
            name="norm",
        )

    def call(self, x, training=False):
        x = self.conv(_pad(x, self.kernel_size, self.stride))
        x = self.norm(x, training=training)
        return tf.nn.relu(x) if self.relu else x


class Block(layers.Layer):
    """`relu(F(x) + shortcut(x))` (equations 1 and 2): the ReLU comes after the addition.

    `[batch, height, width, in]` -> `[batch, ⌈height/stride⌉, ⌈width/stride⌉, width * expansion]`.
    The shortcut is the identity, and projects by a 1x1 convolution exactly where the shape changes.
    """

    EXPANSION = 1

    def __init__(self, config: Config, width: int, stride: int, name: str | None = None):
        super().__init__(name=name)
        self.width, self.stride, self._config = width, stride, config
        self.residual = self._residual(config, width, stride)
        self.projection: ConvNorm | None = None

    def _residual(self, config: Config, width: int, stride: int) -> list[ConvNorm]:
        """The layers of F, the last without ReLU."""
        raise NotImplementedError("a block is a BasicBlock or a Bottleneck")

    def build(self, input_shape):
        filters = self.width * self.EXPANSION
        if self.stride != 1 or input_shape[-1] != filters:
            self.projection = ConvNorm(
                self._config, filters, 1, self.stride, relu=False, name="projection"
            )
        super().build(input_shape)

    def call(self, x, training=False):
        shortcut = x if self.projection is None else self.projection(x, training=training)
        for layer in self.residual:
            x = layer(x, training=training)
        return tf.nn.relu(x + shortcut)


def _last_gamma(config: Config) -> str:
    return "zeros" if config.model.zero_init_residual else "ones"


class BasicBlock(Block):
    """Two 3x3 convolutions (figure 5, left)."""

    def _residual(self, config, width, stride):
        return [
            ConvNorm(config, width, 3, stride, name="conv1"),
            ConvNorm(
                config, width, 3, relu=False, gamma_initializer=_last_gamma(config), name="conv2"
            ),
        ]


class Bottleneck(Block):
    """1x1 down, 3x3, 1x1 up to four times the width (figure 5, right)."""

    EXPANSION = 4

    def _residual(self, config, width, stride):
        return [
            ConvNorm(config, width, 1, name="conv1"),
            ConvNorm(config, width, 3, stride, name="conv2"),
            ConvNorm(
                config,
                width * self.EXPANSION,
                1,
                relu=False,
                gamma_initializer=_last_gamma(config),
                name="conv3",
            ),
        ]


def stack_stages(
    config: Config, block: type[Block], widths: Sequence[int], depths: Sequence[int]
) -> list[list[Block]]:
    """Stages of `depths[i]` blocks of `widths[i]`; each but the first halves the image."""
    return [
        [
            block(
                config,
                width,
                stride=2 if stage > 0 and index == 0 else 1,
                name=f"stage{stage + 1}_block{index + 1}",
            )
            for index in range(depth)
        ]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True))
    ]


class ResNet(tf_keras.Model):
    """Images `[batch, height, width, channels]`, normalised, to float32 logits `[batch, classes]`.

    Args:
        imagenet_stem: a 7x7 convolution of stride 2 and a max pool of stride 2, so that stages see
            a quarter of the image; otherwise one 3x3 convolution that keeps its size.
    """

    def __init__(
        self,
        config: Config,
        block: type[Block],
        widths: Sequence[int],
        depths: Sequence[int],
        imagenet_stem: bool,
        name: str,
    ):
        super().__init__(name=name)
        self.imagenet_stem = imagenet_stem
        kernel_size, stride = (7, 2) if imagenet_stem else (3, 1)
        self.stem = ConvNorm(config, widths[0], kernel_size, stride, name="stem")
        self.pool = layers.MaxPooling2D(3, 2, name="pool")
        self.stages = stack_stages(config, block, widths, depths)
        self.mean_pool = layers.GlobalAveragePooling2D(name="mean_pool")
        # float32 at any precision: softmax and loss lose too much in half precision. The bound is
        # torchvision's: uniform in ±1/sqrt(fan_in).
        self.head = layers.Dense(
            config.model.num_classes,
            kernel_initializer=tf_keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
            dtype="float32",
            name="head",
        )

    def call(self, images, training=False):  # pyright: ignore[reportIncompatibleMethodOverride]
        x = self.stem(images, training=training)
        if self.imagenet_stem:
            # ReLU's outputs are >= 0, so padding with zeros cannot win a maximum over the image.
            x = self.pool(_pad(x, kernel_size=3, stride=2))
        for stage in self.stages:
            for block in stage:
                x = block(x, training=training)
        return self.head(self.mean_pool(x))


def _imagenet(config: Config, block: type[Block], depths: Sequence[int], name: str) -> ResNet:
    return ResNet(config, block, (64, 128, 256, 512), depths, imagenet_stem=True, name=name)


def _cifar(config: Config, depth: int) -> ResNet:
    blocks = (depth - 2) // 6  # depth = 6n + 2 (section 4.2): three stages of n blocks of two
    return ResNet(
        config, BasicBlock, (16, 32, 64), (blocks,) * 3, imagenet_stem=False, name=f"resnet{depth}"
    )


def resnet18(config: Config) -> ResNet:
    """11,689,512 parameters with 1,000 classes and 3 channels."""
    return _imagenet(config, BasicBlock, (2, 2, 2, 2), "resnet18")


def resnet34(config: Config) -> ResNet:
    """21,797,672 parameters."""
    return _imagenet(config, BasicBlock, (3, 4, 6, 3), "resnet34")


def resnet50(config: Config) -> ResNet:
    """25,557,032 parameters."""
    return _imagenet(config, Bottleneck, (3, 4, 6, 3), "resnet50")


def resnet101(config: Config) -> ResNet:
    """44,549,160 parameters."""
    return _imagenet(config, Bottleneck, (3, 4, 23, 3), "resnet101")


def resnet152(config: Config) -> ResNet:
    """60,192,808 parameters."""
    return _imagenet(config, Bottleneck, (3, 8, 36, 3), "resnet152")


def resnet20(config: Config) -> ResNet:
    """0.27 million parameters with 10 classes (table 6)."""
    return _cifar(config, 20)


def resnet32(config: Config) -> ResNet:
    """0.46 million parameters."""
    return _cifar(config, 32)


def resnet44(config: Config) -> ResNet:
    """0.66 million parameters."""
    return _cifar(config, 44)


def resnet56(config: Config) -> ResNet:
    """0.85 million parameters."""
    return _cifar(config, 56)


def resnet110(config: Config) -> ResNet:
    """1.7 million parameters."""
    return _cifar(config, 110)
