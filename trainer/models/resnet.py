"""Residual networks (He et al. 2015, "Deep Residual Learning for Image Recognition") and their
variants: see `Variant` and the table `VARIANTS`.

A network is a stem, stages of blocks, and a classifier.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

import tensorflow as tf
import tf_keras
from tf_keras import layers

from trainer.config import ModelConfig
from trainer.models.layers import (
    BlurPool,
    ConvNorm,
    Dropout,
    SqueezeExcite,
    StochasticDepth,
    classifier,
    pad_evenly,
)

SETTINGS = ("blur_pool", "stochastic_depth", "dropout")


@dataclasses.dataclass(frozen=True)
class Variant:
    """The differences between residual networks.

    Attributes:
        bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions instead of two 3x3 ones (figure 5).
        depths: blocks of each stage (table 1; section 4.2 for CIFAR: `depth = 6n + 2`).
        widths: channels of each stage; a bottleneck's output has four times as many.
        stem: `imagenet`, a 7x7 convolution of stride 2 and a max pool of stride 2, so that stages
            see a quarter of the image; `deep`, three 3x3 convolutions instead of the 7x7 one
            (He et al. 2018, "Bag of Tricks", ResNet-C); `deep_conv`, a convolution instead of the
            pool as well (Bello et al. 2021, ResNet-RS); `cifar`, one 3x3 convolution that keeps
            the image's size.
        stride_first: a bottleneck shrinks the image in its first 1x1 convolution, as in the paper
            ("v1"); else in the 3x3 one, as torchvision and NVIDIA train it ("v1.5").
        pool_shortcut: shortcuts shrink the image with an average pool (Bag of Tricks, ResNet-D).
        squeeze_excite: the ratio of squeezed channels, 0 for none (Hu et al. 2018).
        groups, group_width: a bottleneck's 3x3 convolution in `groups` groups, each of
            `group_width * width / 64` channels: ResNeXt's C x d (Xie et al. 2017, table 1); one
            group of 128 is a wide ResNet (Zagoruyko & Komodakis 2016, table 8).
    """

    bottleneck: bool
    depths: Sequence[int]
    widths: Sequence[int] = (64, 128, 256, 512)
    stem: Literal["imagenet", "deep", "deep_conv", "cifar"] = "imagenet"
    stride_first: bool = False
    pool_shortcut: bool = False
    squeeze_excite: float = 0.0
    groups: int = 1
    group_width: int = 64


_BASIC = {18: Variant(False, (2, 2, 2, 2)), 34: Variant(False, (3, 4, 6, 3))}
_DEEP = {
    50: Variant(True, (3, 4, 6, 3)),
    101: Variant(True, (3, 4, 23, 3)),
    152: Variant(True, (3, 8, 36, 3)),
}
_IMAGENET = _BASIC | _DEEP
_D = {"stem": "deep", "pool_shortcut": True}
_RS = {"stem": "deep_conv", "pool_shortcut": True, "squeeze_excite": 0.25}
_RS_DEPTHS = {  # Bello et al. 2021, table 9
    **{depth: variant.depths for depth, variant in _DEEP.items()},
    200: (3, 24, 36, 3),
    270: (4, 29, 53, 4),
    350: (4, 36, 72, 4),
    420: (4, 44, 87, 4),
}
_CIFAR = {"widths": (16, 32, 64), "stem": "cifar"}

VARIANTS: dict[str, Variant] = {
    **{f"resnet{n}": v for n, v in _IMAGENET.items()},
    **{f"resnet{n}_v1": dataclasses.replace(v, stride_first=True) for n, v in _DEEP.items()},
    **{f"resnet{n}d": dataclasses.replace(v, **_D) for n, v in _IMAGENET.items()},
    "resnet200d": Variant(True, (3, 24, 36, 3), **_D),
    **{f"seresnet{n}": dataclasses.replace(v, squeeze_excite=1 / 16) for n, v in _IMAGENET.items()},
    **{f"resnetrs{n}": Variant(True, depths, **_RS) for n, depths in _RS_DEPTHS.items()},
    "resnext50_32x4d": dataclasses.replace(_DEEP[50], groups=32, group_width=4),
    "resnext101_32x4d": dataclasses.replace(_DEEP[101], groups=32, group_width=4),
    "resnext101_32x8d": dataclasses.replace(_DEEP[101], groups=32, group_width=8),
    "resnext101_64x4d": dataclasses.replace(_DEEP[101], groups=64, group_width=4),
    "wide_resnet50_2": dataclasses.replace(_DEEP[50], group_width=128),
    "wide_resnet101_2": dataclasses.replace(_DEEP[101], group_width=128),
    **{f"resnet{6 * n + 2}": Variant(False, (n, n, n), **_CIFAR) for n in (3, 5, 7, 9, 18)},
}


class Block(layers.Layer):
    """`relu(F(x) + shortcut(x))` (equations 1 and 2): the ReLU comes after the addition.

    `[batch, height, width, in]` -> `[batch, ⌈height/stride⌉, ⌈width/stride⌉, out]`, with
    `out = width`, or `4 * width` for a bottleneck. The shortcut is the identity, or a 1x1
    convolution if the shape changes (option B).

    Args:
        drop_rate: the probability that training drops F.
        number: the block's number in its network, from 0: the stream of its random numbers.
    """

    def __init__(
        self,
        config: ModelConfig,
        variant: Variant,
        width: int,
        stride: int,
        drop_rate: float = 0.0,
        number: int = 0,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.stride, self._config, self._variant = stride, config, variant
        self.filters = 4 * width if variant.bottleneck else width
        self.residual = (_bottleneck if variant.bottleneck else _basic)(
            config, variant, width, stride
        )
        if variant.squeeze_excite:
            # timm rounds to multiples of 8; the paper's networks of this kind have them anyway.
            squeezed = max(8, int(self.filters * variant.squeeze_excite + 4) // 8 * 8)
            self.residual.append(SqueezeExcite(squeezed, name="se"))
        self.drop = StochasticDepth(drop_rate, number, name="drop")
        self.projection: ConvNorm | None = None

    def build(self, input_shape):
        if self.stride != 1 or input_shape[-1] != self.filters:
            self.projection = ConvNorm(
                self._config,
                self.filters,
                1,
                1 if self._variant.pool_shortcut else self.stride,
                activation=None,
                name="projection",
            )
        super().build(input_shape)

    def shortcut(self, x, training=False):
        """Returns x, or its projection, in the shape of F(x)."""
        if self.projection is None:
            return x
        if self._variant.pool_shortcut and self.stride != 1:
            # At the edges, "SAME" takes the mean of the pixels that are there.
            x = tf.nn.avg_pool2d(x, self.stride, self.stride, "SAME")
        return self.projection(x, training=training)

    def call(self, x, training=False):
        shortcut = self.shortcut(x, training)
        for layer in self.residual:
            x = layer(x, training=training)
        return tf.nn.relu(self.drop(x, training=training) + shortcut)


def _last_gamma(config: ModelConfig) -> str:
    return "zeros" if config.zero_init_residual else "ones"


def _strided(
    config: ModelConfig, filters: int, kernel_size: int, stride: int, groups: int, name: str
):
    """Returns a strided convolution, or one that keeps the size and a blur that shrinks."""
    if stride == 1 or not config.blur_pool:
        return [ConvNorm(config, filters, kernel_size, stride, groups=groups, name=name)]
    return [
        ConvNorm(config, filters, kernel_size, groups=groups, name=name),
        BlurPool(name=f"{name}_blur"),
    ]


def _basic(config: ModelConfig, variant: Variant, width: int, stride: int) -> list[layers.Layer]:
    """Returns F of two 3x3 convolutions (figure 5, left), the last without ReLU."""
    del variant
    last = ConvNorm(
        config, width, 3, activation=None, gamma_initializer=_last_gamma(config), name="conv2"
    )
    return [*_strided(config, width, 3, stride, 1, "conv1"), last]


def _bottleneck(
    config: ModelConfig, variant: Variant, width: int, stride: int
) -> list[layers.Layer]:
    """Returns F of 1x1 down, 3x3, 1x1 up to four times the width (figure 5, right)."""
    groups = variant.groups
    inner = width * variant.group_width // 64 * groups
    strides = (stride, 1) if variant.stride_first else (1, stride)
    last = ConvNorm(
        config, 4 * width, 1, activation=None, gamma_initializer=_last_gamma(config), name="conv3"
    )
    return [
        *_strided(config, inner, 1, strides[0], 1, "conv1"),
        *_strided(config, inner, 3, strides[1], groups, "conv2"),
        last,
    ]


def _stages(config: ModelConfig, variant: Variant) -> list[list[Block]]:
    """Returns the blocks of each stage. All stages but the first halve the image.

    The rate of stochastic depth grows linearly with the block's number, up to the config's in the
    last block (Huang et al. 2016, equation 4).
    """
    stages: list[list[Block]] = []
    number, total = 0, sum(variant.depths)
    for stage, (width, depth) in enumerate(zip(variant.widths, variant.depths, strict=True)):
        stages.append([])
        for index in range(depth):
            stages[-1].append(
                Block(
                    config,
                    variant,
                    width,
                    stride=2 if stage > 0 and index == 0 else 1,
                    drop_rate=config.stochastic_depth * (number + 1) / total,
                    number=number,
                    name=f"stage{stage + 1}_block{index + 1}",
                )
            )
            number += 1
    return stages


def _stem(config: ModelConfig, variant: Variant) -> ConvNorm | list[ConvNorm]:
    width = variant.widths[0]
    if variant.stem == "cifar":
        return ConvNorm(config, width, 3, name="stem")
    if variant.stem == "imagenet":
        return ConvNorm(config, width, 7, 2, name="stem")
    stem = [
        ConvNorm(config, width // 2, 3, 2, name="stem_conv1"),
        ConvNorm(config, width // 2, 3, name="stem_conv2"),
        ConvNorm(config, width, 3, name="stem_conv3"),
    ]
    if variant.stem == "deep_conv":
        stem.append(ConvNorm(config, width, 3, 2, name="stem_conv4"))
    return stem


class ResNet(tf_keras.Model):
    """Normalised images `[batch, height, width, channels]` to float32 logits `[batch, classes]`."""

    def __init__(self, config: ModelConfig, variant: Variant, name: str):
        super().__init__(name=name)
        self.variant = variant
        self.stem = _stem(config, variant)
        self.blur = BlurPool(name="stem_blur") if config.blur_pool else None
        self.pool = layers.MaxPooling2D(3, 1 if self.blur else 2, name="stem_pool")
        self.stages = _stages(config, variant)
        self.mean_pool = layers.GlobalAveragePooling2D(name="head_pool")
        self.dropout = Dropout(config.dropout, stream=sum(variant.depths), name="head_dropout")
        self.head = classifier(config)

    def call(self, images, training=False):  # pyright: ignore[reportIncompatibleMethodOverride]
        x = images
        for layer in self.stem if isinstance(self.stem, Sequence) else [self.stem]:
            x = layer(x, training=training)
        if self.variant.stem in ("imagenet", "deep"):
            # ReLU's outputs are >= 0, so padding with zeros cannot win a maximum over the image.
            x = self.pool(pad_evenly(x, kernel_size=3, stride=2))
            x = x if self.blur is None else self.blur(x)
        for stage in self.stages:
            for block in stage:
                x = block(x, training=training)
        return self.head(self.dropout(self.mean_pool(x), training=training))


def build(config: ModelConfig) -> ResNet:
    """Builds the network of `VARIANTS` that `config.name` names."""
    return ResNet(config, VARIANTS[config.name], config.name)


_STEM_NAMES = {
    "stem/conv": "conv1",
    "stem/norm": "bn1",
    "stem_conv1/conv": "conv1.0",
    "stem_conv1/norm": "conv1.1",
    "stem_conv2/conv": "conv1.3",
    "stem_conv2/norm": "conv1.4",
    "stem_conv3/conv": "conv1.6",
    "stem_conv3/norm": "bn1",
    "stem_conv4/conv": "maxpool.0",
    "stem_conv4/norm": "maxpool.1",
    "head": "fc",
}
_BLOCK_NAMES = {"se/reduce": "se.fc1", "se/expand": "se.fc2"}


def timm_name(model: ResNet, path: str) -> str:
    """Returns a layer's name in timm and torchvision.

    For example, `stage3_block1/conv2/norm` -> `layer3.0.bn2`.
    """
    if path in _STEM_NAMES:
        return _STEM_NAMES[path]
    stage, block, layer = re.fullmatch(r"stage(\d+)_block(\d+)/(.*)", path).groups()
    if match := re.fullmatch(r"conv(\d)/(conv|norm)", layer):
        layer = f"{'conv' if match[2] == 'conv' else 'bn'}{match[1]}"
    elif match := re.fullmatch(r"projection/(conv|norm)", layer):
        layer = f"downsample.{(match[1] == 'norm') + model.variant.pool_shortcut}"
    return f"layer{stage}.{int(block) - 1}.{_BLOCK_NAMES.get(layer, layer)}"


NAMES = {"timm": timm_name}
