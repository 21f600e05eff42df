"""MobileNetV2 (Sandler et al. 2018, "Inverted Residuals and Linear Bottlenecks") and MobileNetV3
(Howard et al. 2019, "Searching for MobileNetV3"): stages of inverted residual blocks.
"""

import re
from typing import NamedTuple

import tensorflow as tf
import tf_keras
from tf_keras import layers

from trainer.config import ModelConfig
from trainer.models.layers import (
    Activation,
    ConvNorm,
    Dropout,
    SqueezeExcite,
    StochasticDepth,
    classifier,
    conv,
    hard_sigmoid,
    hard_swish,
    make_divisible,
)

SETTINGS = ("stochastic_depth", "dropout")


class Row(NamedTuple):
    """One block: a row of MobileNetV3's tables 1 and 2."""

    kernel_size: int
    expanded: int  # channels of the depthwise convolution
    filters: int
    squeeze_excite: bool
    activation: Activation
    stride: int


class Variant(NamedTuple):
    """A network: its stem, its stages, and the layers before the head."""

    stem: int  # channels
    activation: Activation  # of the stem and the last convolution
    stages: tuple[tuple[Row, ...], ...]
    last: int  # channels of the last convolution
    features: int  # of the dense layer behind the mean; 0 for none, as in MobileNetV2


def _v2(multiplier: float) -> Variant:
    """Returns table 2 with all widths times `multiplier`, the last one at least 1280."""

    def width(channels: int) -> int:
        return make_divisible(channels * multiplier)

    stages, inputs = [], width(32)
    for expansion, channels, repeats, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        rows = []
        for index in range(repeats):
            filters, strided = width(channels), stride if index == 0 else 1
            rows.append(Row(3, inputs * expansion, filters, False, tf.nn.relu6, strided))
            inputs = filters
        stages.append(tuple(rows))
    return Variant(width(32), tf.nn.relu6, tuple(stages), max(1280, width(1280)), features=0)


_RELU, _SWISH = tf.nn.relu, hard_swish
_V3_LARGE = Variant(  # table 1
    stem=16,
    activation=_SWISH,
    stages=(
        (Row(3, 16, 16, False, _RELU, 1),),
        (Row(3, 64, 24, False, _RELU, 2), Row(3, 72, 24, False, _RELU, 1)),
        (Row(5, 72, 40, True, _RELU, 2), *2 * (Row(5, 120, 40, True, _RELU, 1),)),
        (
            Row(3, 240, 80, False, _SWISH, 2),
            Row(3, 200, 80, False, _SWISH, 1),
            *2 * (Row(3, 184, 80, False, _SWISH, 1),),
        ),
        (Row(3, 480, 112, True, _SWISH, 1), Row(3, 672, 112, True, _SWISH, 1)),
        (Row(5, 672, 160, True, _SWISH, 2), *2 * (Row(5, 960, 160, True, _SWISH, 1),)),
    ),
    last=960,
    features=1280,
)
_V3_SMALL = Variant(  # table 2
    stem=16,
    activation=_SWISH,
    stages=(
        (Row(3, 16, 16, True, _RELU, 2),),
        (Row(3, 72, 24, False, _RELU, 2), Row(3, 88, 24, False, _RELU, 1)),
        (Row(5, 96, 40, True, _SWISH, 2), *2 * (Row(5, 240, 40, True, _SWISH, 1),)),
        (Row(5, 120, 48, True, _SWISH, 1), Row(5, 144, 48, True, _SWISH, 1)),
        (Row(5, 288, 96, True, _SWISH, 2), *2 * (Row(5, 576, 96, True, _SWISH, 1),)),
    ),
    last=576,
    features=1024,
)
# timm's names: the number is the multiplier of the widths, in percent.
VARIANTS: dict[str, Variant] = {
    "mobilenetv2_050": _v2(0.5),
    "mobilenetv2_100": _v2(1.0),
    "mobilenetv2_140": _v2(1.4),
    "mobilenetv3_large_100": _V3_LARGE,
    "mobilenetv3_small_100": _V3_SMALL,
}


class InvertedResidual(layers.Layer):
    """A 1x1 convolution up to `row.expanded` channels, a depthwise one, and 1x1 down without
    activation; adds the input if the shape is the same (Sandler et al. 2018, figure 4d).
    MobileNetV3 has squeeze-and-excite behind the depthwise convolution.

    `[batch, height, width, in]` -> `[batch, ⌈height/stride⌉, ⌈width/stride⌉, row.filters]`.
    """

    def __init__(self, config: ModelConfig, row: Row, drop_rate: float, number: int, name: str):
        super().__init__(name=name)
        self.row, self._config = row, config
        self.expand: ConvNorm | None = None
        self.depthwise = ConvNorm(
            config, None, row.kernel_size, row.stride, row.activation, name="depthwise"
        )
        self.squeeze_excite: SqueezeExcite | None = None
        if row.squeeze_excite:
            self.squeeze_excite = SqueezeExcite(
                make_divisible(row.expanded / 4), gate=hard_sigmoid, name="se"
            )
        self.project = ConvNorm(config, row.filters, 1, activation=None, name="project")
        self.drop = StochasticDepth(drop_rate, number, name="drop")

    def build(self, input_shape):
        if self.row.expanded != input_shape[-1]:
            self.expand = ConvNorm(
                self._config, self.row.expanded, 1, activation=self.row.activation, name="expand"
            )
        super().build(input_shape)

    def call(self, x, training=False):
        inputs = x
        if self.expand is not None:
            x = self.expand(x, training=training)
        x = self.depthwise(x, training=training)
        if self.squeeze_excite is not None:
            x = self.squeeze_excite(x)
        x = self.project(x, training=training)
        if self.row.stride == 1 and inputs.shape[-1] == self.row.filters:
            x = self.drop(x, training=training) + inputs
        return x


class MobileNet(tf_keras.Model):
    """Normalised images `[batch, height, width, channels]` to float32 logits `[batch, classes]`."""

    def __init__(self, config: ModelConfig, variant: Variant, name: str):
        super().__init__(name=name)
        self.variant = variant
        self.stem = ConvNorm(config, variant.stem, 3, 2, variant.activation, name="stem")
        self.stages: list[list[InvertedResidual]] = []
        number, total = 0, sum(len(rows) for rows in variant.stages)
        for stage, rows in enumerate(variant.stages, start=1):
            self.stages.append([])
            for index, row in enumerate(rows, start=1):
                rate = config.stochastic_depth * (number + 1) / total
                block = InvertedResidual(config, row, rate, number, f"stage{stage}_block{index}")
                self.stages[-1].append(block)
                number += 1
        self.last = ConvNorm(
            config, variant.last, 1, activation=variant.activation, name="head_conv"
        )
        self.mean_pool = layers.GlobalAveragePooling2D(keepdims=True, name="head_pool")
        self.features: layers.Conv2D | None = None
        if variant.features:  # a dense layer, written as the equivalent 1x1 convolution
            self.features = conv(variant.features, 1, 1, "head_features", use_bias=True)
        self.dropout = Dropout(config.dropout, stream=total, name="head_dropout")
        self.head = classifier(config)

    def call(self, images, training=False):  # pyright: ignore[reportIncompatibleMethodOverride]
        x = self.stem(images, training=training)
        for stage in self.stages:
            for block in stage:
                x = block(x, training=training)
        x = self.mean_pool(self.last(x, training=training))
        if self.features is not None:
            x = hard_swish(self.features(x))
        return self.head(self.dropout(tf.squeeze(x, [1, 2]), training=training))


def build(config: ModelConfig) -> MobileNet:
    """Builds the network of `VARIANTS` that `config.name` names."""
    return MobileNet(config, VARIANTS[config.name], config.name)


def _block_of(model: MobileNet, path: str) -> tuple[InvertedResidual, int, int, str] | None:
    """Returns the block, the indices of its stage and in it, and the rest of the path."""
    match = re.fullmatch(r"stage(\d+)_block(\d+)/(.*)", path)
    if not match:
        return None
    stage, index = int(match[1]) - 1, int(match[2]) - 1
    return model.stages[stage][index], stage, index, match[3]


def timm_name(model: MobileNet, path: str) -> str:
    """Returns a layer's name in timm: `stage2_block1/depthwise/norm` -> `blocks.1.0.bn2`."""
    found = _block_of(model, path)
    if found is None:
        v3 = model.features is not None
        stages = len(model.stages)
        return {
            "stem/conv": "conv_stem",
            "stem/norm": "bn1",
            "head_conv/conv": f"blocks.{stages}.0.conv" if v3 else "conv_head",
            "head_conv/norm": f"blocks.{stages}.0.bn1" if v3 else "bn2",
            "head_features": "conv_head",
            "head": "classifier",
        }[path]
    block, stage, index, layer = found
    names = ("conv_dw", "conv_pw") if block.expand is None else ("conv_pw", "conv_dw", "conv_pwl")
    parts = _parts(block)
    part, _, kind = layer.partition("/")
    if part == "se":
        return f"blocks.{stage}.{index}.se.conv_{kind}"
    number = parts.index(part)
    return f"blocks.{stage}.{index}." + (names[number] if kind == "conv" else f"bn{number + 1}")


def torchvision_name(model: MobileNet, path: str) -> str:
    """Returns a layer's name in torchvision, such as `features.2.conv.1.1`."""
    v3 = model.features is not None
    blocks = [block for stage in model.stages for block in stage]
    found = _block_of(model, path)
    if found is None:
        return {
            "stem/conv": "features.0.0",
            "stem/norm": "features.0.1",
            "head_conv/conv": f"features.{len(blocks) + 1}.0",
            "head_conv/norm": f"features.{len(blocks) + 1}.1",
            "head_features": "classifier.0",
            "head": "classifier.3" if v3 else "classifier.1",
        }[path]
    block, _, _, layer = found
    parts = _parts(block, with_se=True)
    part, _, kind = layer.partition("/")
    prefix = f"features.{blocks.index(block) + 1}.{'block' if v3 else 'conv'}."
    number = parts.index(part)
    if part == "se":
        return f"{prefix}{number}.fc{1 if kind == 'reduce' else 2}"
    if part == "project" and not v3:  # its two layers are not in a module
        return f"{prefix}{number + (kind == 'norm')}"
    return f"{prefix}{number}.{int(kind == 'norm')}"


def _parts(block: InvertedResidual, with_se: bool = False) -> list[str]:
    """Returns the names of a block's layers, in order."""
    expand = [] if block.expand is None else ["expand"]
    squeeze_excite = ["se"] if with_se and block.squeeze_excite is not None else []
    return [*expand, "depthwise", *squeeze_excite, "project"]


# Libraries' batch norm epsilons that differ from ours.
EPSILONS = {
    ("torchvision", "mobilenetv3_large_100"): 1e-3,
    ("torchvision", "mobilenetv3_small_100"): 1e-3,
}
NAMES = {"timm": timm_name, "torchvision": torchvision_name}
