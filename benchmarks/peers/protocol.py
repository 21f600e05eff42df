"""The protocol between a benchmark and a contender: lines of text and JSON. Standard library only.

    stdout  {"ready": true, "parameters": 272474, "versions": {…}, "first_step_s": 8.1, …}
    stdin   run 20
    stdout  {"seconds": 2.31, "cpu_seconds": 4.5, "steps": 20, "loss": 1.9}
    stdin   memory
    stdout  {"peak_rss_bytes": 1234567890}
    stdin   quit

Import this first: it starts the clock of `first_step_s`, which includes the libraries' imports.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

STARTED = time.monotonic()
WARM_UP_SECONDS = 1.0
CLASSES = {"resnet20": 10, "resnet50": 1000, "dense": 10}
# The hyperparameters of all contenders. At this learning rate, training a thousand times on one
# batch does not diverge at any precision.
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, LABEL_SMOOTHING = 0.01, 0.9, 1e-4, 0.1
BN_MOMENTUM, BN_EPSILON = 0.9, 1e-5


class Request(NamedTuple):
    """The model to train and how."""

    model: str  # resnet20, resnet50 or dense
    batch: int  # images per step
    image_size: int  # height and width, pixels
    precision: str  # float32 or bfloat16
    threads: int  # per operation
    variant: str  # which contender, if a file serves several

    @property
    def channels(self) -> int:
        return 1 if self.model == "dense" else 3

    @property
    def classes(self) -> int:
        return CLASSES[self.model]

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.image_size, self.image_size, self.channels)


def read_request() -> Request:
    """Reads the request from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=CLASSES, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--image_size", type=int, required=True)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--variant", default="")
    return Request(**vars(parser.parse_args()))


def versions(*packages: str) -> dict[str, str]:
    return {"python": sys.version.split()[0]} | {name: version(name) for name in packages}


def serve(
    run: Callable[[int], tuple[int, float]],
    parameters: int,
    packages: Mapping[str, str],
    commands: Mapping[str, Callable[[], dict]] | None = None,
) -> None:
    """Warms up, reports ready, then answers until `quit` or the end of stdin.

    Args:
        run: trains at least this many steps, waits until they are done, and returns their number
            and the last loss.
        parameters: the number of trainable parameters.
        packages: versions, for the report.
        commands: more words, with the functions that answer them.
    """
    # From here on, stdout is for answers only; whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(values: dict) -> None:
        print(json.dumps(values), file=answers, flush=True)

    run(1)
    first_step_s = time.monotonic() - STARTED
    steps, seconds = 0, 0.0
    while seconds < WARM_UP_SECONDS:
        started = time.monotonic()
        steps, _ = run(max(1, 2 * steps))
        seconds = time.monotonic() - started
    answer(
        {
            "ready": True,
            "parameters": parameters,
            "versions": dict(packages),
            "first_step_s": first_step_s,
            "seconds_per_step": seconds / steps,
        }
    )
    for line in sys.stdin:
        word, _, argument = line.strip().partition(" ")
        if word == "run":
            started, cpu_started = time.monotonic(), time.process_time()
            done, loss = run(int(argument))
            seconds = time.monotonic() - started
            # Over all threads. Much less than threads * seconds: something else had the cores.
            cpu_seconds = time.process_time() - cpu_started
            answer({"seconds": seconds, "cpu_seconds": cpu_seconds, "steps": done, "loss": loss})
        elif word == "memory":
            answer({"peak_rss_bytes": peak_rss_bytes()})
        elif commands and word in commands:
            answer(commands[word]())
        elif word == "quit":
            return
        else:
            raise ValueError(f"{word!r} is not a word of this protocol")


def peak_rss_bytes() -> int:
    """Returns this process's largest resident set so far.

    Not `ru_maxrss`, which a process inherits from its parent.
    """
    return _status_bytes("VmHWM")


def resident_bytes() -> int:
    """Returns this process's current resident set."""
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")
