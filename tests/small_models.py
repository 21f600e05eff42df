"""Small models, for tests that would say no more of a large one, registered by conftest.py."""

from collections.abc import Callable

import tensorflow as tf
import tf_keras
from tf_keras import layers

from trainer.config import ModelConfig
from trainer.models import mobilenet, resnet, vgg, wide_resnet

SETTINGS = ("blur_pool", "stochastic_depth", "dropout")


def linear(config: ModelConfig) -> tf_keras.Model:
    """Softmax regression: no batch norm."""
    return tf_keras.Sequential([layers.Flatten(), layers.Dense(config.num_classes)])


def convnet(config: ModelConfig) -> tf_keras.Model:
    """Convolutions without batch norm, so that parts of a batch compute what the whole does."""
    return tf_keras.Sequential(
        [
            layers.Conv2D(16, 3, padding="same", activation="relu", name="conv1"),
            layers.Conv2D(32, 3, 2, padding="same", activation="relu", name="conv2"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(config.num_classes, dtype="float32", name="head"),
        ]
    )


def keras_norm(config: ModelConfig) -> tf_keras.Model:
    """With Keras' own batch norm, as a model of a user's may have."""
    return tf_keras.Sequential(
        [
            layers.Conv2D(8, 3, padding="same", name="conv1"),
            layers.BatchNormalization(name="norm1"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(config.num_classes, dtype="float32", name="head"),
        ]
    )


class Fragile(tf_keras.Model):
    """Softmax regression that answers a wholly white image with NaN, as if a file were broken."""

    def __init__(self, num_classes: int):
        super().__init__(name="fragile")
        self.flatten = layers.Flatten()
        self.head = layers.Dense(num_classes, name="head")

    def call(self, images, training=False):  # pyright: ignore[reportIncompatibleMethodOverride]
        del training
        white = tf.reduce_min(images, axis=[1, 2, 3]) > 1.5  # digits: (1 - mean) / std is 1.8
        return self.head(self.flatten(images)) * tf.where(white, float("nan"), 1.0)[:, None]


def fragile(config: ModelConfig) -> Fragile:
    return Fragile(config.num_classes)


class Overflowing(tf_keras.Model):
    """A `convnet` whose gradient is 10^6 times as large for a wholly white image: float16 overflows
    there, in the backward pass alone, and the loss is what it was."""

    def __init__(self, num_classes: int):
        super().__init__(name="overflowing")
        self.conv1 = layers.Conv2D(16, 3, padding="same", activation="relu", name="conv1")
        self.conv2 = layers.Conv2D(32, 3, 2, padding="same", activation="relu", name="conv2")
        self.pool = layers.GlobalAveragePooling2D()
        self.head = layers.Dense(num_classes, dtype="float32", name="head")

    def call(self, images, training=False):  # pyright: ignore[reportIncompatibleMethodOverride]
        del training
        white = tf.reduce_min(images, axis=[1, 2, 3]) > 1.5
        factor = tf.where(white, 1e6, 1.0)[:, None, None, None]

        @tf.custom_gradient
        def amplify(x):
            return x, lambda dy: tf.cast(tf.cast(dy, tf.float32) * factor, dy.dtype)

        return self.head(self.pool(amplify(self.conv2(self.conv1(images)))))


def overflowing(config: ModelConfig) -> Overflowing:
    return Overflowing(config.num_classes)


class Hungry(tf_keras.Model):
    """Softmax regression with an activation of 2^40 numbers an image: no machine has the memory."""

    def __init__(self, num_classes: int):
        super().__init__(name="hungry")
        self.flatten = layers.Flatten()
        self.head = layers.Dense(num_classes, name="head")

    def call(self, images, training=False):  # pyright: ignore[reportIncompatibleMethodOverride]
        del training
        logits = self.head(self.flatten(images))
        one = logits[:, :1]
        return logits + tf.reduce_mean(tf.tile(one[..., None], [1, 2**20, 2**20]), axis=-1)[:, :1]


def hungry(config: ModelConfig) -> Hungry:
    return Hungry(config.num_classes)


def _resnet(**settings) -> Callable[[ModelConfig], resnet.ResNet]:
    """One block a stage, narrow."""
    variant = resnet.Variant(
        **({"bottleneck": True, "depths": (1, 1), "widths": (16, 32)} | settings)
    )
    return lambda config: resnet.ResNet(config, variant, config.name)


def _mobilenet(name: str, stages: slice) -> Callable[[ModelConfig], mobilenet.MobileNet]:
    whole = mobilenet.VARIANTS[name]
    variant = whole._replace(stages=whole.stages[stages], last=32, features=min(whole.features, 32))
    return lambda config: mobilenet.MobileNet(config, variant, config.name)


# One of each family, which have each kind of layer between them.
FAMILIES: dict[str, Callable[[ModelConfig], tf_keras.Model]] = {
    "tiny_resnet": _resnet(bottleneck=False),
    "tiny_rs": _resnet(stem="deep_conv", pool_shortcut=True, squeeze_excite=0.25),
    "tiny_resnext": _resnet(groups=4, group_width=16),
    "tiny_wrn": lambda config: wide_resnet.WideResNet(config, 10, 1, config.name),
    "tiny_vgg": lambda config: vgg.VGG(
        config, (1, 1, 1, 1, 1), config.name, (8, 8, 16, 16, 16), features=32
    ),
    "tiny_mobilenetv2": _mobilenet("mobilenetv2_050", slice(0, 2)),
    "tiny_mobilenetv3": _mobilenet("mobilenetv3_small_100", slice(0, 2)),
}

MODELS: dict[str, Callable[[ModelConfig], tf_keras.Model]] = {
    "linear": linear,
    "resnet8": _resnet(bottleneck=False, depths=(1, 1, 1), widths=(16, 32, 64), stem="cifar"),
    "convnet": convnet,
    "keras_norm": keras_norm,
    "fragile": fragile,
    "overflowing": overflowing,
    "hungry": hungry,
    "tiny_bottleneck": _resnet(),
    **FAMILIES,
}


def build(config: ModelConfig) -> tf_keras.Model:
    return MODELS[config.name](config)
