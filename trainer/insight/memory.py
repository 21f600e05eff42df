"""An estimate of a train step's memory, from the step's own graph.

The operations of forward and backward are walked in order. A tensor is held from the operation that
makes it to the last one that reads it. TensorFlow's executor does the same, except for the order of
independent operations, the scratch memory of convolutions, and the allocator's waste. For these
there is an allowance, as measured on a CPU (tests/insight/test_memory.py).
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from trainer.config import Config
from trainer.step.optim import OPTIMIZERS
from trainer.step.train_step import forward_backward

# A batch size that no other axis has: an axis of this length is the batch.
_MARKER = 1009

# What measured peaks (ResNet-18 and -50, SE-ResNet-50, ResNeXt-50, wide ResNet-50, VGG-11 and -16,
# MobileNetV2 and V3) exceeded the graph's own memory by: a share of the memory per image, larger in
# half precision; the allocator's waste; and copies of the largest kernel in the layouts of oneDNN's
# matrix products, outside of TensorFlow's allocator. The number of copies at a time depends on what
# the executor runs in parallel: VGG-11's step, in float32, takes 2.3 GiB with one thread for
# operations, 2.6 or 2.7 with two, 2.7 with four.
# With accumulation, a step held 1.7 to 1.9 times what one micro-batch does (ResNet-18 and -20, in 2
# and 4 parts, without XLA; a TPU's program has no such share). The reason is not known.
_ALLOWANCE = {"float32": 1.1, "mixed_bfloat16": 1.2, "mixed_float16": 1.2}
_ACCUMULATION = 1.7
_WASTE = 64 * 2**20
_KERNEL_COPIES = 1.25

# Operations that return their input without a copy.
_ALIASES = {"Identity", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "PreventGradient"}
# Operations that overwrite an input of the same size that no other one reads.
_IN_PLACE = {
    *("AddV2", "Add", "Sub", "Mul", "Neg", "RealDiv", "Maximum", "Minimum", "AddN"),
    *("Relu", "Relu6", "ReluGrad", "Relu6Grad", "Sigmoid", "SigmoidGrad", "BiasAdd"),
}
# Operations whose outputs take no memory.
_FREE = {"Const", "Placeholder", "ReadVariableOp", "NoOp", "AssignVariableOp"}


class TrainingMemory(NamedTuple):
    """The memory of a train step: the maximum of `fixed + batch_size * per_image` bytes over the
    points of the step, some in the forward pass, others in the backward pass.

    The process itself (TensorFlow and the graph) is not included: 0.7 GiB on a CPU.
    """

    points: tuple[tuple[int, int], ...]  # fixed and per_image, of the points that can be the peak

    def at(self, batch_size: int) -> int:
        """Returns the peak for a micro-batch of this size, in bytes."""
        return max(fixed + batch_size * per_image for fixed, per_image in self.points)

    def batch_that_fits(self, memory: int) -> int:
        """Returns the largest micro-batch that fits in `memory` bytes; 0 if not even one image."""
        return max(0, min((memory - fixed) // max(each, 1) for fixed, each in self.points))

    def plus(self, per_image: int) -> "TrainingMemory":
        """Returns the estimate with this many bytes more for each image, at all times."""
        return TrainingMemory(tuple((fixed, each + per_image) for fixed, each in self.points))


class _Size(NamedTuple):
    """Bytes: a fixed part, and a part for each image."""

    fixed: int
    per_image: int


def training_graph(config: Config, model: tf_keras.Model, channels: int) -> tf.Graph:
    """Traces the train step's forward and backward pass for one micro-batch of `_MARKER` images."""
    size = config.data.image_size
    data = dataclasses.replace(config.data, global_batch_size=_MARKER)
    whole_batch = dataclasses.replace(config, data=data)

    @tf.function
    def gradients(images, labels):
        return forward_backward(whole_batch, model, None, 0, 0, images, labels).gradients

    images = tf.TensorSpec([_MARKER, size, size, channels], tf.uint8)
    labels = tf.TensorSpec([_MARKER], tf.int32)
    return gradients.get_concrete_function(images, labels).graph


def kept_by_layer(graph: tf.Graph) -> Counter[str]:
    """Returns the bytes per image that each direct layer keeps for the backward pass, by name."""
    operations = _needed(graph)
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
    """Estimates the memory for a graph and the config's optimizer, average and accumulation."""
    operations = _needed(graph)
    readers: Counter = Counter()
    for op in operations:
        readers.update({_source(tensor).ref() for tensor in op.inputs})
    for tensor in graph.structured_outputs:
        readers[_source(tensor).ref()] += 1  # gradients stay until they are applied
    held = _Size(0, 0)
    walk = []
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
        if op.type in _IN_PLACE and made and made[0] in done:
            done.remove(made[0])
        else:
            held = _plus(held, *made)
            walk.append(held)
        held = _minus(held, *done)
    always = _state_bytes(config, model)
    points = {(size.fixed + always, round(_allowance(config) * size.per_image)) for size in walk}
    return TrainingMemory(_greatest(points))


def upper_bound(config: Config, model: tf_keras.Model, loop: tf.Graph) -> int:
    """Returns more bytes than a train step takes at one time: those of all tensors that a traced
    train loop makes. It takes 1 % of the trace's time; an estimate takes a third of it or more.

    A part that all replicas of this process share counts once.
    """
    made = sum(
        _bytes(tensor)
        for graph in _with_functions(loop, set())
        for op in graph.get_operations()
        if op.type not in _FREE and op.type not in _ALIASES
        for tensor in op.outputs
    )
    return round(_allowance(config) * made) + _state_bytes(config, model)


def _allowance(config: Config) -> float:
    parts = _ACCUMULATION if config.accumulation_steps > 1 else 1.0
    return _ALLOWANCE[config.precision] * parts


def _with_functions(graph: tf.Graph, seen: set[str]) -> Iterator[tf.Graph]:
    """Yields a graph and the graphs of the functions in it, such as loops' bodies, each once."""
    yield graph
    for name, function in graph._functions.items():  # public only as a serialised copy
        if name not in seen:
            seen.add(name)
            yield from _with_functions(function.graph, seen)


def _needed(graph: tf.Graph) -> list[tf.Operation]:
    """Returns the operations that gradients or statistics depend on, in order.

    TensorFlow leaves out the others, such as the backward pass of frozen layers.
    """
    wanted = [tensor.op for tensor in graph.structured_outputs]
    wanted += [op for op in graph.get_operations() if op.type == "AssignVariableOp"]
    seen = set()
    while wanted:
        op = wanted.pop()
        if op.name not in seen:
            seen.add(op.name)
            wanted += [tensor.op for tensor in op.inputs]
    return [op for op in graph.get_operations() if op.name in seen]


def _greatest(points: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Returns the points that no other one exceeds in both numbers."""
    found: list[tuple[int, int]] = []
    for fixed, per_image in sorted(points, reverse=True):
        if not found or per_image > found[-1][1]:
            found.append((fixed, per_image))
    return tuple(found)


def _state_bytes(config: Config, model: tf_keras.Model) -> int:
    """Returns the bytes held at all times: variables, slots, average, copies, waste, and sums of
    accumulated gradients. (The gradients of one micro-batch are in the graph.)"""
    variables = sum(4 * math.prod(v.shape) for v in model.variables)
    trainable = sum(4 * math.prod(v.shape) for v in model.trainable_variables)
    compute = tf.as_dtype(tf_keras.mixed_precision.Policy(config.precision).compute_dtype)
    largest = max((math.prod(v.shape) for v in model.trainable_variables), default=0)
    averages = 1 if config.ema_decay is not None else 0
    sums = 1 if config.accumulation_steps > 1 else 0
    return (
        variables * (1 + averages)
        + trainable * (OPTIMIZERS[config.optimizer.name].SLOTS + sums)
        + round(_KERNEL_COPIES * largest * compute.size)
        + _WASTE
    )


def _source(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the tensor whose memory this one shares."""
    while tensor.op.type in _ALIASES:
        tensor = tensor.op.inputs[0]
    return tensor


def _size(tensor: tf.Tensor) -> _Size:
    is_batch = tensor.shape.rank is not None and _MARKER in tensor.shape.as_list()
    return _Size(0, _bytes(tensor) // _MARKER) if is_batch else _Size(_bytes(tensor), 0)


def _bytes(tensor: tf.Tensor) -> int:
    """Returns a tensor's bytes; with 1 for an axis of unknown length."""
    if tensor.dtype in (tf.resource, tf.variant) or tensor.shape.rank is None:
        return 0
    return math.prod(1 if n is None else n for n in tensor.shape) * tensor.dtype.size


def _plus(first: _Size, *others: _Size) -> _Size:
    sizes = (first, *others)
    return _Size(sum(s.fixed for s in sizes), sum(s.per_image for s in sizes))


def _minus(first: _Size, *others: _Size) -> _Size:
    return _plus(first, *(_Size(-s.fixed, -s.per_image) for s in others))


def _layer(op: tf.Operation) -> str:
    """Returns the direct layer that an operation belongs to: `resnet50/stage1_block1/…`."""
    parts = op.name.split("/")
    return parts[1] if len(parts) > 2 else ""
