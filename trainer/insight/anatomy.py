"""Output, parameters, multiply-adds and receptive field of each direct layer of a model.

Keras' `summary()` prints "multiple" instead of shapes for subclassed models, whose layers can be
called with anything. Here the model is called once, and the layers' calls are watched.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras

from trainer.models.stages import stage_of

Watch = Callable[[tf_keras.layers.Layer, Any], None]


class Row(NamedTuple):
    """One direct layer of a model: a block, the stem, the head."""

    stage: str
    name: str
    output: tuple[int, ...]  # without the batch
    parameters: int  # trainable
    multiply_adds: int  # of convolutions and dense layers, for one image
    receptive_field: int | None  # width and height in pixels of the image; None: the whole image


@contextlib.contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Calls `watch(layer, output)` after each call of a layer, at any depth, in order."""
    layer_class: Any = tf_keras.layers.Layer
    original = layer_class.__call__

    def call(self, *arguments, **options):
        output = original(self, *arguments, **options)
        watch(self, output)
        return output

    layer_class.__call__ = call
    try:
        yield
    finally:
        layer_class.__call__ = original


def anatomy(model: tf_keras.Model, image_size: int, channels: int) -> list[Row]:
    """Returns the direct layers of a model in the order of their calls, but those without effect.

    Args:
        image_size: pixels, in each direction.
    """
    direct = {id(layer) for layer in model.layers}
    calls: dict[str, tuple[tf_keras.layers.Layer, tf.Tensor]] = {}  # the last of each layer
    multiply_adds: Counter[str] = Counter()
    inside: Counter[str] = Counter()  # since the last direct layer's end

    def watch(layer: tf_keras.layers.Layer, output: Any) -> None:
        for kernel in ("kernel", "depthwise_kernel"):
            if isinstance(getattr(layer, kernel, None), tf.Variable):
                positions = math.prod(output.shape[1:-1])
                inside[layer.name] += positions * math.prod(getattr(layer, kernel).shape)
        if id(layer) in direct:
            calls[layer.name] = layer, output
            multiply_adds[layer.name] += inside.total()
            inside.clear()

    @tf.function
    def call(images):
        with watching(watch):
            return model(images, training=False)

    spec = tf.TensorSpec([1, image_size, image_size, channels], tf.float32)
    graph = call.get_concrete_function(spec).graph
    fields = _receptive_fields(graph)
    return [
        Row(
            stage_of(layer),
            name,
            tuple(output.shape[1:]),
            sum(math.prod(v.shape) for v in layer.variables if v.trainable),
            multiply_adds[name],
            fields[output.op.name].pixels,
        )
        for name, (layer, output) in calls.items()
        if not _is_idle(layer)
    ]


def _is_idle(layer: tf_keras.layers.Layer) -> bool:
    """Whether the layer is dropout or stochastic depth with rate 0."""
    return getattr(layer, "rate", None) == 0


class _Field(NamedTuple):
    """A pixel's receptive field: its extent in pixels of the image (None: the whole image), and the
    distance to its neighbour's."""

    pixels: int | None
    jump: int


def _receptive_fields(graph: tf.Graph) -> dict[str, _Field]:
    """Returns the field of each operation that depends on the images, by name.

    A window of k pixels, `jump` apart, sees `(k - 1) * jump` more than one of them (Araujo et al.
    2019, equation 2). Where branches meet, the larger field counts. A gate computed from the means
    of the whole image, as in squeeze-and-excite, does not.
    """
    fields: dict[str, _Field] = {}
    for op in graph.get_operations():
        if op.type == "Placeholder" and op.outputs[0].dtype == tf.float32:
            fields[op.name] = _Field(1, 1)
        found = [fields[tensor.op.name] for tensor in op.inputs if tensor.op.name in fields]
        if not found:
            continue
        local = [field for field in found if field.pixels is not None]
        field = max(local, key=lambda one: one.pixels or 0) if local else found[0]
        if op.type in ("Mean", "Einsum", "BatchMatMulV2"):
            field = _Field(None, field.jump)
        size, stride = _window(op)
        if size and field.pixels is not None:
            field = _Field(field.pixels + (size - 1) * field.jump, field.jump * stride)
        fields[op.name] = field
    return fields


def _window(op: tf.Operation) -> tuple[int, int]:
    """Returns the height and stride of an operation's window; height 0 if it has none."""
    if op.type in ("Conv2D", "DepthwiseConv2dNative"):
        return int(op.inputs[1].shape[0] or 0), op.get_attr("strides")[1]
    if op.type in ("MaxPool", "AvgPool"):
        return op.get_attr("ksize")[1], op.get_attr("strides")[1]
    return 0, 1
