"""Measures the time from the command to the end of the first step, in parts.

    python -m benchmarks.startup --out benchmarks/startup-DATE.md

Each start is a new process. "Compile" is TensorFlow's work on the first call of a traced function:
it optimises the graph and generates oneDNN's kernels.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from absl import app, flags

from benchmarks.machine import ROOT, hardware, markdown_table, say

OWN_IMPORTS_GOAL = 1.0  # seconds
CASES = {"resnet20": (128, 32), "resnet50": (16, 224)}  # images per step, pixels

_CASES = flags.DEFINE_list("cases", list(CASES), "Models to measure.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Starts per model.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Markdown file to write in addition to printing.")


def start(model: str) -> dict[str, float]:
    """Starts one process and returns the seconds of each part."""
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
        raise app.UsageError(f"cases: {', '.join(CASES)}")
    start(_CASES.value[0])  # fills the file system's cache
    rounds = {model: [] for model in _CASES.value}
    for index in range(_ROUNDS.value):
        for model, starts in rounds.items():  # in turns
            starts.append(start(model))
        say(f"round {index + 1} of {_ROUNDS.value}")
    document = [
        "# Time from the command to the end of the first step",
        f"`python -m benchmarks.startup {shlex.join(sys.argv[1:])}`, "
        f"{time.strftime('%Y-%m-%d %H:%M')}, on {hardware()}; python {sys.version.split()[0]}, "
        f"tensorflow {version('tensorflow')}, tf-keras {version('tf-keras')}. n = {_ROUNDS.value} "
        f"starts, in turns, files cached; float32. Goal: our own imports take at most "
        f"{OWN_IMPORTS_GOAL:g} s beyond TensorFlow's.",
    ]
    document += [table(model, starts) for model, starts in rounds.items()]
    text = "\n\n".join(document)
    if _OUT.value:
        Path(_OUT.value).write_text(f"{text}\n", encoding="utf-8")
    print(text)


def table(model: str, starts: Sequence[dict[str, float]]) -> str:
    batch, image_size = CASES[model]
    columns = {name: [laps[name] for laps in starts] for name in starts[0]}
    not_ours = ("this benchmark's imports", "second step")
    columns["in all, to the end of the first step"] = [
        sum(seconds for name, seconds in laps.items() if name not in not_ours) for laps in starts
    ]
    rows = []
    for name, values in columns.items():
        median = f"{statistics.median(values):.2f}"
        if name == "our own imports":
            median += " (met)" if statistics.median(values) <= OWN_IMPORTS_GOAL else " (missed)"
        rows.append([name, median, f"{min(values):.2f} to {max(values):.2f}"])
    head = f"{model}, {batch} images of {image_size} pixels"
    return markdown_table([head, "s, median", "least to most"], rows)


if __name__ == "__main__":
    app.run(main)
