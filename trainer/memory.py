"""How much memory a train step takes: an estimate from the step's own graph.

The graph of forward and backward is gone through in its order; what an operation makes is held from
there until the last operation that reads it. That is what TensorFlow's executor does, but for the
order of what is independent, for what convolutions work in, and for what the allocator wastes: for
these there is an allowance, as measured on a CPU (tests/test_memory.py).
"""

import math
from collections import Counter
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from trainer.config import Config
from trainer.losses import softmax_cross_entropy
from trainer.models.randomness import examples
from trainer.steps import normalize

# A batch that no other axis has, so that an axis of this length tells what grows with the batch.
_MARKER = 1009

# What measured peaks (ResNet-18 and -50, SE-ResNet-50, ResNeXt-50, VGG-16, MobileNetV2 and V3) had
# beyond the graph's own: a share of what comes with each image, larger in half precision, and twice
# the kernels, which oneDNN copies to layouts of its own.
_ALLOWANCE = {"float32": 1.1, "mixed_bfloat16": 1.2, "mixed_float16": 1.2}
_KERNEL_COPIES = 2

# What hands its input on, without a copy.
_ALIASES = {"Identity", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "PreventGradient"}
# What writes its result over an input of the same size that nobody else reads.
_IN_PLACE = {
    *("AddV2", "Add", "Sub", "Mul", "Neg", "RealDiv", "Maximum", "Minimum", "AddN"),
    *("Relu", "Relu6", "ReluGrad", "Relu6Grad", "Sigmoid", "SigmoidGrad", "BiasAdd"),
}
# What holds no memory of its own.
_FREE = {"Const", "Placeholder", "ReadVariableOp", "NoOp", "AssignVariableOp"}


class TrainingMemory(NamedTuple):
    """What a train step holds at its peak: `fixed + batch_size * per_image` bytes.

    The process itself, TensorFlow and the graph, comes on top: 0.7 GiB on a CPU.
    """

    fixed: int  # weights, gradients, the optimizer's slots, the average
    per_image: int

    def batch_that_fits(self, memory: int) -> int:
        """The largest batch for so many bytes; 0 where not even one image fits."""
        return max(0, (memory - self.fixed) // self.per_image)


class _Size(NamedTuple):
    """Bytes, of which some come with each image."""

    fixed: int
    per_image: int


def training_graph(config: Config, model: tf_keras.Model, channels: int) -> tf.Graph:
    """Forward and backward of one micro-batch, of `_MARKER` images, as in steps.py."""
    size = config.data.image_size

    @tf.function
    def forward_backward(images, labels):
        with tf.GradientTape() as tape, examples(config.seed, 0, 0, _MARKER):
            logits = model(normalize(images, config), training=True)
            loss = tf.reduce_sum(softmax_cross_entropy(logits, labels, config.label_smoothing))
        return tape.gradient(loss, model.trainable_variables)

    images = tf.TensorSpec([_MARKER, size, size, channels], tf.uint8)
    labels = tf.TensorSpec([_MARKER], tf.int32)
    return forward_backward.get_concrete_function(images, labels).graph


def kept_by_layer(graph: tf.Graph) -> Counter[str]:
    """Bytes an image that the forward pass of each direct layer keeps for the backward pass."""
    operations = graph.get_operations()
    start = next(i for i, op in enumerate(operations) if "gradient_tape" in op.name)
    forward = {op.name for op in operations[:start]}
    kept = {
        source.ref(): source
        for op in operations[start:]
        for source in map(_source, op.inputs)
        if source.op.name in forward and source.op.type not in _FREE
    }
    sizes: Counter[str] = Counter()
    for source in kept.values():
        sizes[_layer(source.op)] += _size(source).per_image
    return sizes


def training_memory(config: Config, model: tf_keras.Model, graph: tf.Graph) -> TrainingMemory:
    """The estimate, for this graph and the config's optimizer and average."""
    operations = graph.get_operations()
    readers: Counter = Counter()
    for op in operations:
        readers.update({_source(tensor).ref() for tensor in op.inputs})
    for tensor in graph.structured_outputs:
        readers[_source(tensor).ref()] += 1  # gradients stay until they are applied
    large = 64  # images: the peak is sought for a batch where the activations are what counts
    held = peak = _Size(0, 0)

    def total(size: _Size) -> int:
        return size.fixed + large * size.per_image

    for op in operations:
        if op.type in _FREE or op.type in _ALIASES:
            continue
        made = [_size(tensor) for tensor in op.outputs if readers[tensor.ref()]]
        sources = {_source(tensor).ref(): _source(tensor) for tensor in op.inputs}
        for reference in sources:
            readers[reference] -= 1
        done = [
            _size(source)
            for reference, source in sources.items()
            if not readers[reference] and source.op.type not in _FREE
        ]
        reused = op.type in _IN_PLACE and any(size in done for size in made)
        if not reused:
            held = _plus(held, *made)
            peak = max(peak, held, key=total)
        held = _minus(held, *(done if not reused else _without(done, made[0])))
    compute = tf.as_dtype(tf_keras.mixed_precision.Policy(config.precision).compute_dtype)
    kernels = sum(math.prod(v.shape) for v in model.trainable_variables if v.shape.rank > 1)
    fixed = peak.fixed + _state_bytes(config, model) + _KERNEL_COPIES * kernels * compute.size
    return TrainingMemory(fixed, round(_ALLOWANCE[config.precision] * peak.per_image))


def _state_bytes(config: Config, model: tf_keras.Model) -> int:
    """Variables, slots and average. Gradients are in the graph."""
    variables = sum(4 * math.prod(v.shape) for v in model.variables)
    trainable = sum(4 * math.prod(v.shape) for v in model.trainable_variables)
    slots = {"sgd": 1, "adamw": 2}[config.optimizer.name]
    averages = 1 if config.ema_decay is not None else 0
    return variables * (1 + averages) + trainable * slots


def _source(tensor: tf.Tensor) -> tf.Tensor:
    """The tensor whose memory this one is."""
    while tensor.op.type in _ALIASES:
        tensor = tensor.op.inputs[0]
    return tensor


def _size(tensor: tf.Tensor) -> _Size:
    if tensor.dtype in (tf.resource, tf.variant) or tensor.shape.rank is None:
        return _Size(0, 0)
    known = [1 if n is None else n for n in tensor.shape]
    numbers = math.prod(known) * tensor.dtype.size
    return _Size(0, numbers // _MARKER) if _MARKER in known else _Size(numbers, 0)


def _plus(first: _Size, *others: _Size) -> _Size:
    sizes = (first, *others)
    return _Size(sum(s.fixed for s in sizes), sum(s.per_image for s in sizes))


def _minus(first: _Size, *others: _Size) -> _Size:
    return _plus(first, *(_Size(-s.fixed, -s.per_image) for s in others))


def _without(sizes: list[_Size], one: _Size) -> list[_Size]:
    rest = list(sizes)
    rest.remove(one)
    return rest


def _layer(op: tf.Operation) -> str:
    """The direct layer in whose call an operation was made: `resnet50/stage1_block1/…`."""
    parts = op.name.split("/")
    return parts[1] if len(parts) > 2 else ""
