"""Wide residual networks for small images (Zagoruyko & Komodakis 2016): WRN-depth-width.

Blocks have pre-activation (He et al. 2016, "Identity Mappings in Deep Residual Networks", figure
4e): batch norm and ReLU come before each convolution, and nothing after the addition.
"""

import tensorflow as tf
import tf_keras
from tf_keras import layers

from trainer.config import ModelConfig
from trainer.models.layers import Dropout, StochasticDepth, classifier, conv, norm, pad_evenly

SETTINGS = ("stochastic_depth", "dropout")
# Depth and width. Depth = 6n + 4: three stages of n blocks of two convolutions.
VARIANTS: dict[str, tuple[int, int]] = {
    "wrn16_4": (16, 4),
    "wrn16_8": (16, 8),
    "wrn28_2": (28, 2),
    "wrn28_10": (28, 10),
    "wrn40_2": (40, 2),
    "wrn40_4": (40, 4),
}


class PreActivationBlock(layers.Layer):
    """`F(r) + shortcut`, with `r = relu(norm(x))`: the shortcut is x, or a projection of r if the
    shape changes.

    `[batch, height, width, in]` -> `[batch, ⌈height/stride⌉, ⌈width/stride⌉, filters]`. The dropout
    of the paper's section 2.4 is between the convolutions.
    """

    def __init__(
        self,
        config: ModelConfig,
        filters: int,
        stride: int,
        drop_rate: float = 0.0,
        number: int = 0,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.filters, self.stride = filters, stride
        self.norm1 = norm(config, "norm1")
        self.conv1 = conv(filters, 3, stride, "conv1")
        self.norm2 = norm(config, "norm2")
        self.dropout = Dropout(config.dropout, stream=2 * number, name="dropout")
        self.conv2 = conv(filters, 3, 1, "conv2")
        self.drop = StochasticDepth(drop_rate, stream=2 * number + 1, name="drop")
        self.projection: layers.Conv2D | None = None

    def build(self, input_shape):
        if self.stride != 1 or input_shape[-1] != self.filters:
            self.projection = conv(self.filters, 1, self.stride, "projection")
        super().build(input_shape)

    def call(self, x, training=False):
        activated = tf.nn.relu(self.norm1(x, training=training))
        shortcut = x if self.projection is None else self.projection(activated)
        x = self.conv1(pad_evenly(activated, 3, self.stride))
        x = tf.nn.relu(self.norm2(x, training=training))
        x = self.conv2(self.dropout(x, training=training))
        return self.drop(x, training=training) + shortcut


class WideResNet(tf_keras.Model):
    """Normalised images `[batch, height, width, channels]` to float32 logits `[batch, classes]`.

    Table 1 of the paper: a stem of 16 channels, three stages of `16k`, `32k` and `64k`.
    """

    def __init__(self, config: ModelConfig, depth: int, width: int, name: str):
        super().__init__(name=name)
        blocks = (depth - 4) // 6
        self.stem = conv(16, 3, 1, "stem")
        self.stages = [
            [
                PreActivationBlock(
                    config,
                    filters=16 * 2**stage * width,
                    stride=2 if stage > 0 and index == 0 else 1,
                    drop_rate=config.stochastic_depth * (stage * blocks + index + 1) / (3 * blocks),
                    number=stage * blocks + index,
                    name=f"stage{stage + 1}_block{index + 1}",
                )
                for index in range(blocks)
            ]
            for stage in range(3)
        ]
        self.norm = norm(config, "head_norm")
        self.mean_pool = layers.GlobalAveragePooling2D(name="head_pool")
        self.head = classifier(config)

    def call(self, images, training=False):  # pyright: ignore[reportIncompatibleMethodOverride]
        x = self.stem(images)
        for stage in self.stages:
            for block in stage:
                x = block(x, training=training)
        x = tf.nn.relu(self.norm(x, training=training))
        return self.head(self.mean_pool(x))


def build(config: ModelConfig) -> WideResNet:
    """Builds the network of `VARIANTS` that `config.name` names."""
    depth, width = VARIANTS[config.name]
    return WideResNet(config, depth, width, config.name)
