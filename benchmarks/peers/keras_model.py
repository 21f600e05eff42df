"""The models for Keras 3, in the style of its own examples.

Strided convolutions use "same" padding, which needs no extra operation, unlike our symmetric
padding. Images arrive normalised and labels one-hot; both favour the peers.
"""

import keras  # pyright: ignore[reportMissingImports]
import numpy as np
import tensorflow as tf
from keras import layers

from benchmarks.peers import protocol


def setup(request: protocol.Request) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(request.threads)
    tf.config.threading.set_inter_op_parallelism_threads(request.threads)
    keras.utils.set_random_seed(0)
    if request.precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")


def make_dataset(request: protocol.Request) -> tf.data.Dataset:
    """Repeats one batch indefinitely."""
    random = np.random.default_rng(0)
    images = random.normal(size=request.image_shape).astype(np.float32)
    labels = random.integers(0, request.classes, request.batch)
    one_hot = np.eye(request.classes, dtype=np.float32)[labels]
    return tf.data.Dataset.from_tensors((images, one_hot)).repeat()


def make_optimizer(weight_decay: float | None) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(
        protocol.LEARNING_RATE, protocol.MOMENTUM, nesterov=True, weight_decay=weight_decay
    )


def make_loss() -> keras.losses.Loss:
    return keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=protocol.LABEL_SMOOTHING
    )


def make_model(request: protocol.Request) -> keras.Model:
    """Builds a model from images to float32 logits."""
    inputs = keras.Input(request.image_shape[1:], batch_size=request.batch)
    if request.model == "dense":
        x = layers.Flatten()(inputs)
    elif request.model == "resnet20":
        x = _stages(_conv(inputs, 16, 3), _basic, widths=(16, 32, 64), depths=(3, 3, 3))
    else:
        x = layers.MaxPooling2D(3, 2, "same")(_conv(inputs, 64, 7, 2))
        x = _stages(x, _bottleneck, widths=(64, 128, 256, 512), depths=(3, 4, 6, 3))
    if request.model != "dense":
        x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(request.classes, dtype="float32")(x))


def _conv(x, filters: int, kernel_size: int, stride: int = 1, relu: bool = True):
    x = layers.Conv2D(
        filters,
        kernel_size,
        stride,
        "same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)
    x = layers.BatchNormalization(momentum=protocol.BN_MOMENTUM, epsilon=protocol.BN_EPSILON)(x)
    return layers.ReLU()(x) if relu else x


def _shortcut(x, filters: int, stride: int):
    same = stride == 1 and x.shape[-1] == filters
    return x if same else _conv(x, filters, 1, stride, relu=False)


def _basic(x, width: int, stride: int):
    y = _conv(_conv(x, width, 3, stride), width, 3, relu=False)
    return layers.ReLU()(layers.Add()([y, _shortcut(x, width, stride)]))


def _bottleneck(x, width: int, stride: int):
    y = _conv(_conv(x, width, 1), width, 3, stride)
    y = _conv(y, 4 * width, 1, relu=False)
    return layers.ReLU()(layers.Add()([y, _shortcut(x, 4 * width, stride)]))


def _stages(x, block, widths: tuple[int, ...], depths: tuple[int, ...]):
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for index in range(depth):
            x = block(x, width, 2 if stage > 0 and index == 0 else 1)
    return x


def count_parameters(model: keras.Model) -> int:
    return sum(int(np.prod(w.shape)) for w in model.trainable_variables)
