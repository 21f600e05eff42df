"""A worker of benchmarks/scaling.py: our train loop on one core, alone or in TF_CONFIG's cluster.

Prints `ready`, waits for a line, trains, and prints `{"seconds_per_step": s, "steps": n,
"reduced_bytes": […]}`: the bytes that this worker passes to each reduction of a step.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator

from benchmarks.peers import ours, protocol

WARM_UP_STEPS = 3


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--image_size", type=int, required=True)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--sync_batch_norm", action="store_true")
    return parser.parse_args()


def reduced_bytes(graph) -> list[int]:
    """Returns the bytes of each collective reduction in a graph and the functions it calls."""
    return [
        operation.inputs[0].shape.num_elements() * operation.inputs[0].dtype.size
        for operation in _operations(graph)
        if operation.type.startswith("CollectiveReduce")
    ]


def _operations(graph) -> Iterator:
    yield from graph.get_operations()
    for function in graph._functions.values():
        yield from function.graph.get_operations()


def main() -> None:
    arguments = read_arguments()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.sched_setaffinity(0, {arguments.core})  # before TensorFlow starts its threads

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    # inter_op threads stay at the default: a collective blocks one, and others must keep running.
    request = protocol.Request(
        arguments.model, arguments.batch, arguments.image_size, "float32", 1, ""
    )
    if os.environ.get("TF_CONFIG"):
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        strategy = tf.distribute.OneDeviceStrategy("/CPU:0")
    loop = ours.Loop(request, strategy, arguments.sync_batch_norm)
    loop.run(1)  # traces
    started = time.monotonic()
    loop.run(WARM_UP_STEPS)
    seconds_per_step = (time.monotonic() - started) / WARM_UP_STEPS

    print("ready", file=answers, flush=True)
    sys.stdin.readline()
    steps = arguments.steps or max(2, round(arguments.seconds / seconds_per_step))
    loop.run(1)  # synchronises workers that train together
    started = time.monotonic()
    loop.run(steps)
    seconds = time.monotonic() - started

    graph = loop.train_loop.get_concrete_function(loop.iterator, tf.constant(1)).graph
    answer = {"seconds_per_step": seconds / steps, "steps": steps}
    answer["reduced_bytes"] = reduced_bytes(graph)
    print(json.dumps(answer), file=answers, flush=True)
    del loop.iterator  # before its devices


if __name__ == "__main__":
    main()
