"""VGG (Simonyan & Zisserman 2014, "Very Deep Convolutional Networks") with batch norm."""

import tensorflow as tf
import tf_keras
from tf_keras import layers

from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.models.layers import ConvNorm, Dropout, classifier

SETTINGS = ("dropout",)
# 3x3 convolutions of each stage (table 1, configurations A, B, D, E).
VARIANTS: dict[str, tuple[int, ...]] = {
    "vgg11_bn": (1, 1, 2, 2, 2),
    "vgg13_bn": (2, 2, 2, 2, 2),
    "vgg16_bn": (2, 2, 3, 3, 3),
    "vgg19_bn": (2, 2, 4, 4, 4),
}
_FILTERS = (64, 128, 256, 512, 512)
_POOLED = 7  # 224 halved five times: the size that the first dense layer reads
_FEATURES = 4096


class VGG(tf_keras.Model):
    """Normalised images `[batch, height, width, channels]` to float32 logits `[batch, classes]`.

    Five stages of 3x3 convolutions, each with a 2x2 max pool at its end, and three dense layers.
    The first of these is written as the equivalent 7x7 convolution. If images do not have 224
    pixels, features are pooled to 7x7 first, as in torchvision.
    """

    def __init__(
        self,
        config: ModelConfig,
        depths: tuple[int, ...],
        name: str,
        filters: tuple[int, ...] = _FILTERS,
        features: int = _FEATURES,
    ):
        super().__init__(name=name)
        self.stages = [
            [
                *(
                    ConvNorm(config, width, 3, use_bias=True, name=f"stage{stage}_conv{index + 1}")
                    for index in range(depth)
                ),
                layers.MaxPooling2D(2, name=f"stage{stage}_pool"),
            ]
            for stage, (width, depth) in enumerate(zip(filters, depths, strict=True), start=1)
        ]
        self.fc1 = layers.Conv2D(
            features, _POOLED, activation="relu", kernel_initializer="he_normal", name="head_fc1"
        )
        self.dropout1 = Dropout(config.dropout, stream=0, name="head_dropout1")
        self.fc2 = layers.Conv2D(
            features, 1, activation="relu", kernel_initializer="he_normal", name="head_fc2"
        )
        self.dropout2 = Dropout(config.dropout, stream=1, name="head_dropout2")
        self.head = classifier(config)

    def call(self, images, training=False):  # pyright: ignore[reportIncompatibleMethodOverride]
        size = min(images.shape[1:3])
        if size < 32:
            raise UserError(
                f"data.image_size ({size}): must be at least 32 for {self.name}, which halves "
                f"images five times; so must data.train_sizes"
            )
        x = images
        for stage in self.stages:
            *convolutions, pool = stage
            for layer in convolutions:
                x = layer(x, training=training)
            x = pool(x)
        x = self.dropout1(self.fc1(adaptive_mean_pool(x, _POOLED)), training=training)
        x = self.dropout2(self.fc2(x), training=training)
        return self.head(tf.squeeze(x, [1, 2]))


def adaptive_mean_pool(x: tf.Tensor, size: int) -> tf.Tensor:
    """Pools `[batch, height, width, channels]` to `[batch, size, size, channels]`.

    Along an axis of n pixels, output i is the mean of pixels `⌊i n / size⌋` to
    `⌈(i + 1) n / size⌉`, the last one excluded.
    """
    for axis, letter in ((1, "h"), (2, "w")):
        n = x.shape[axis]
        if n == size:
            continue
        rows = []
        for i in range(size):
            first, end = i * n // size, -(-(i + 1) * n // size)
            rows.append([1 / (end - first) if first <= j < end else 0.0 for j in range(n)])
        rest = "nhwc".replace(letter, "o")
        x = tf.einsum(f"o{letter},nhwc->{rest}", tf.constant(rows, x.dtype), x)
    return x


def build(config: ModelConfig) -> VGG:
    """Builds the network of `VARIANTS` that `config.name` names."""
    return VGG(config, VARIANTS[config.name], config.name)


def _features_name(model: VGG, path: str) -> str | None:
    """Returns the place in PyTorch's `features`, or None for the layers behind them.

    Activations and pools count too: a convolution takes three places.
    """
    number = 0
    for stage in model.stages:
        *convolutions, _ = stage
        for layer in convolutions:
            if path.startswith(f"{layer.name}/"):
                return f"features.{number + path.endswith('/norm')}"
            number += 3
        number += 1
    return None


def timm_name(model: VGG, path: str) -> str:
    """Returns a layer's name in timm: `stage2_conv1/norm` -> `features.5`."""
    names = {"head_fc1": "pre_logits.fc1", "head_fc2": "pre_logits.fc2", "head": "head.fc"}
    return _features_name(model, path) or names[path]


def torchvision_name(model: VGG, path: str) -> str:
    """Returns a layer's name in torchvision: `stage2_conv1/norm` -> `features.5`."""
    names = {"head_fc1": "classifier.0", "head_fc2": "classifier.3", "head": "classifier.6"}
    return _features_name(model, path) or names[path]


NAMES = {"timm": timm_name, "torchvision": torchvision_name}
