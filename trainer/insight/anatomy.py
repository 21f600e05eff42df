"""What a model is made of: each direct layer's output, parameters, multiply-adds and receptive
field, as a call of the model shows them.

Keras' `summary()` says "multiple" in place of the shapes of subclassed models, whose layers can be
called with anything. Here the model is called once, and the layers are watched.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras

from trainer.models.stages import stage_of

# Shapes of images with a batch axis of its own, whatever else has which length.
_BATCH = 1

Watch = Callable[[tf_keras.layers.Layer, Any], None]


class Row(NamedTuple):
    """One direct layer of a model: a block, the stem, the head."""

    stage: str
    name: str
    output: tuple[int, ...]  # without the batch
    parameters: int  # trainable ones
    multiply_adds: int  # for one image; of convolutions and dense layers
    receptive_field: int | None  # pixels of the image, each way; None: the whole of it


@contextlib.contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Calls `watch(layer, output)` after each call of a layer, of any depth, in order."""
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
    """The direct layers of a model in the order of their calls, without those that do nothing."""
    direct = {id(layer) for layer in model.layers}
    calls: dict[str, tuple[tf_keras.layers.Layer, tf.Tensor]] = {}  # the last of each layer
    multiply_adds: Counter[str] = Counter()
    inside: Counter[str] = Counter()  # since the last direct layer was done

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

    spec = tf.TensorSpec([_BATCH, image_size, image_size, channels], tf.float32)
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
    """Dropout and stochastic depth without a rate."""
    return getattr(layer, "rate", None) == 0


class _Field(NamedTuple):
    """What of the image a pixel sees: an extent in pixels, None for all of it, and the distance
    between the fields of two neighbours."""

    pixels: int | None
    jump: int


def _receptive_fields(graph: tf.Graph) -> dict[str, _Field]:
    """The field of each operation that depends on the images, by name.

    A window of k pixels, `jump` apart, sees `(k - 1) * jump` more than one of them (Araujo et al.
    2019, equation 2). Where branches meet it is the larger field that counts. A gate computed from
    the means of the whole image, as squeeze-and-excite has, is left out.
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
    """The height of an operation's window and its stride; 0 for one that has no window."""
    if op.type in ("Conv2D", "DepthwiseConv2dNative"):
        return int(op.inputs[1].shape[0] or 0), op.get_attr("strides")[1]
    if op.type in ("MaxPool", "AvgPool"):
        return op.get_attr("ksize")[1], op.get_attr("strides")[1]
    return 0, 1
