"""The machine's limit: the model's convolutions alone, each a TensorFlow operation (oneDNN).

A "step" runs every convolution of the model forward, backward to its input and backward to its
kernel, and nothing else of training. `machine` answers with the best FLOP/s of a single convolution
and with the memory bandwidth.
"""

from benchmarks.peers import protocol  # first: its clock starts at import  # isort: skip

import threading
import time
from collections import Counter
from typing import NamedTuple

import numpy as np
import tensorflow as tf

BANDWIDTH_BYTES = 256 * 2**20  # per array: eight times the L3 cache of a large server
REPEATS = 5


class Convolution(NamedTuple):
    """A convolution without bias, padded so that the output's size is `size / stride`."""

    size: int  # height and width of the input, pixels
    channels: int
    filters: int
    kernel: int  # height and width, pixels
    stride: int
    is_first: bool = False  # without a gradient to its input, the images

    def flops(self, batch: int) -> int:
        """Counts FLOPs of one of the three directions, two per multiply-add."""
        pixels = batch * (self.size // self.stride) ** 2
        return 2 * pixels * self.kernel**2 * self.channels * self.filters


def convolutions(model: str, size: int) -> list[Convolution]:
    """Lists the convolutions of ResNet-20 or ResNet-50, from the tables of He et al. 2015."""
    if model == "resnet20":
        found = [Convolution(size, 3, 16, 3, 1, is_first=True)]
        channels, expansion, widths, depths = 16, 1, (16, 32, 64), (3, 3, 3)
    else:
        found = [Convolution(size, 3, 64, 7, 2, is_first=True)]
        channels, expansion, widths, depths = 64, 4, (64, 128, 256, 512), (3, 4, 6, 3)
        size //= 4
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            small, out = size // stride, width * expansion
            if expansion == 1:
                found.append(Convolution(size, channels, width, 3, stride))
                found.append(Convolution(small, width, width, 3, 1))
            else:
                found.append(Convolution(size, channels, width, 1, 1))
                found.append(Convolution(size, width, width, 3, stride))
                found.append(Convolution(small, width, out, 1, 1))
            if stride != 1 or channels != out:
                found.append(Convolution(size, channels, out, 1, stride))
            size, channels = small, out
    return found


def operations(shape: Convolution, batch: int, dtype: tf.DType) -> list:
    """Returns the two or three directions as functions that wait for the result."""
    small = shape.size // shape.stride
    images = tf.random.normal([batch, shape.size, shape.size, shape.channels], dtype=dtype)
    kernel_shape = [shape.kernel, shape.kernel, shape.channels, shape.filters]
    kernel = tf.random.normal(kernel_shape, dtype=dtype)
    gradient = tf.random.normal([batch, small, small, shape.filters], dtype=dtype)
    options = {"strides": [1, shape.stride, shape.stride, 1], "padding": "SAME"}

    def forward():
        tf.raw_ops.Conv2D(input=images, filter=kernel, **options)

    def to_kernel():
        tf.raw_ops.Conv2DBackpropFilter(
            input=images, filter_sizes=kernel_shape, out_backprop=gradient, **options
        )

    def to_input():
        tf.raw_ops.Conv2DBackpropInput(
            input_sizes=images.shape, filter=kernel, out_backprop=gradient, **options
        )

    return [forward, to_kernel] if shape.is_first else [forward, to_kernel, to_input]


def best_seconds(operation) -> float:
    seconds = []
    for _ in range(REPEATS):
        started = time.monotonic()
        operation()
        seconds.append(time.monotonic() - started)
    return min(seconds)


def bandwidth(threads: int) -> dict[str, float]:
    """Measures bytes/s of STREAM's copy (a read, a write) and add (two reads, a write).

    Each is the best of REPEATS.
    """
    a, b, c = (np.ones(BANDWIDTH_BYTES // 4, np.float32) for _ in range(3))
    parts = [slice(i * a.size // threads, (i + 1) * a.size // threads) for i in range(threads)]

    def in_threads(function):
        # NumPy releases the interpreter's lock.
        workers = [threading.Thread(target=function, args=(part,)) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    copy = best_seconds(lambda: in_threads(lambda part: np.copyto(a[part], b[part])))
    add = best_seconds(lambda: in_threads(lambda part: np.add(b[part], c[part], out=a[part])))
    return {
        "copy_bytes_per_s": 2 * BANDWIDTH_BYTES / copy,
        "add_bytes_per_s": 3 * BANDWIDTH_BYTES / add,
    }


def main() -> None:
    request = protocol.read_request()
    tf.config.threading.set_intra_op_parallelism_threads(request.threads)
    tf.config.threading.set_inter_op_parallelism_threads(request.threads)
    dtype = tf.as_dtype(request.precision)
    counts = Counter(convolutions(request.model, request.image_size))
    parts = {shape: operations(shape, request.batch, dtype) for shape in counts}
    flops = sum(
        count * len(parts[shape]) * shape.flops(request.batch) for shape, count in counts.items()
    )

    def run(num_steps: int) -> tuple[int, float]:
        for _ in range(num_steps):
            for shape, count in counts.items():
                for operation in parts[shape] * count:
                    operation()
        return num_steps, 0.0

    def machine() -> dict:
        best = max(
            shape.flops(request.batch) / best_seconds(operation)
            for shape in parts
            for operation in parts[shape]
        )
        return {
            "flops_per_step": flops,
            "best_flops_per_s": best,
            **bandwidth(request.threads),
        }

    kernels = sum(c.kernel**2 * c.channels * c.filters for c in counts.elements())
    versions = protocol.versions("tensorflow", "numpy")
    protocol.serve(run, kernels, versions, {"machine": machine})


if __name__ == "__main__":
    main()
