"""Time from the command to the end of the first step, in parts, in processes of their own.

    python -m benchmarks.startup

"Compile" is what TensorFlow does on the first call of a traced function: it optimises the graph and
makes oneDNN's kernels. Prints a Markdown table.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import app, flags

from benchmarks.machine import ROOT, hardware, say

CASES = {"resnet20": (128, 32), "resnet50": (16, 224)}  # images a step, pixels

_CASES = flags.DEFINE_list("cases", list(CASES), "Which models.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Starts of each.", lower_bound=1)


def start(model: str) -> dict[str, float]:
    """Seconds of each part."""
    batch, image_size = CASES[model]
    command = [sys.executable, "-m", "benchmarks.peers.startup_worker", model, str(batch)]
    output = subprocess.run(
        [*command, str(image_size), str(time.time())],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


def main(argv: Sequence[str]) -> None:
    if argv[1:] or not set(_CASES.value) <= set(CASES):
        raise app.UsageError(f"cases are {', '.join(CASES)}")
    start(_CASES.value[0])  # so that the files are in the cache of the file system
    rounds = {model: [] for model in _CASES.value}
    for index in range(_ROUNDS.value):
        for model, starts in rounds.items():  # in turns
            starts.append(start(model))
        say(f"round {index + 1} of {_ROUNDS.value}")
    print(f"On {hardware()}; n = {_ROUNDS.value} starts, files cached; float32.\n")
    for model, starts in rounds.items():
        print(f"| {model} | s, median | least to most |\n|---|---|---|")
        columns = {name: [laps[name] for laps in starts] for name in starts[0]}
        first_step = [sum(laps.values()) - laps["second step"] for laps in starts]
        columns["in all, to the end of the first step"] = first_step
        for name, values in columns.items():
            spread = f"{min(values):.2f} to {max(values):.2f}"
            print(f"| {name} | {statistics.median(values):.2f} | {spread} |")
        print()


if __name__ == "__main__":
    app.run(main)
