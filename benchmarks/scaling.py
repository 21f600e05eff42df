"""Measures data-parallel weak scaling on one machine: two 1-core workers against one.

    python -m benchmarks.scaling --out benchmarks/scaling-DATE.md

Each worker is pinned to its own core and trains the same batch size per step. The ideal is the same
time per step, and the efficiency is `time alone / time of two`. Two cores share memory bandwidth,
the last-level cache and the clock, whatever they run. "Side by side" is the baseline with this cost
but without communication: two independent workers. Each measurement starts new processes, and the
kinds take turns. Workers run our train loop under MultiWorkerMirroredStrategy and communicate over
loopback; the volume is read from the graph.
"""

import contextlib
import json
import math
import os
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

from benchmarks.machine import ROOT, hardware, markdown_table, say


class Case(NamedTuple):
    model: str
    batch: int  # images per step and worker
    image_size: int  # pixels


CASES = {"resnet20": Case("resnet20", 64, 32), "resnet50": Case("resnet50", 8, 224)}
GOAL = 0.90


class Ring(NamedTuple):
    """A ring for the estimate on paper. Bandwidth and latency are assumed, not measured."""

    title: str
    members: int  # GPUs, or machines if each has already reduced over its own GPUs
    bandwidth: float  # bytes/s that each member can send, and receive at the same time
    latency: float  # seconds per message


RINGS = [
    Ring("8 GPUs of a machine, 200 GB/s, 5 µs", 8, 200e9, 5e-6),
    Ring("64 machines, 100 Gbit/s, 20 µs", 64, 12.5e9, 20e-6),
    Ring("64 machines, 25 Gbit/s, 20 µs", 64, 3.125e9, 20e-6),
]

_CASES = flags.DEFINE_list("cases", list(CASES), "Cases to measure.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Measurements per kind.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 8.0, "Approximate duration of one measurement.")
_SYNC_BATCH_NORM = flags.DEFINE_list(
    "sync_batch_norm", ["false", "true"], "Values of model.sync_batch_norm to measure."
)
_PROCESSES = flags.DEFINE_list(
    "processes", ["2", "3", "4"], "Numbers of workers to count the traffic for."
)
_OUT = flags.DEFINE_string("out", None, "Markdown file to write in addition to printing.")
_JSON = flags.DEFINE_string("json", None, "JSON file for the raw numbers.")


def start(
    case: Case, core: int, steps: int, sync_batch_norm: bool = False, tf_config: dict | None = None
):
    """Starts a worker that measures this many steps; 0: as many as fit in --seconds."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    environment.pop("TF_CONFIG", None)
    if tf_config:
        environment["TF_CONFIG"] = json.dumps(tf_config)
    command = [sys.executable, "-m", "benchmarks.peers.scaling_worker"]
    command += [f"--model={case.model}", f"--batch={case.batch}"]
    command += [f"--image_size={case.image_size}", f"--core={core}"]
    command += [f"--steps={steps}", f"--seconds={_SECONDS.value}"] + [
        "--sync_batch_norm"
    ] * sync_batch_norm
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(processes: Sequence[subprocess.Popen]) -> list[dict[str, Any]]:
    """Waits until all workers are ready, starts them together and returns their answers."""
    try:
        for process in processes:
            line = process.stdout.readline()
            if line != "ready\n":
                raise RuntimeError(f"a worker ended:\n{process.communicate()[1][-4000:]}")
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = []
        for process in processes:
            output, errors = process.communicate()
            if process.returncode:
                raise RuntimeError(f"a worker ended:\n{errors[-4000:]}")
            answers.append(json.loads(output))
        return answers
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:  # all open at once, so all different
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]


def cluster(case: Case, cores: Sequence[int], number: int, steps: int, sync_batch_norm: bool):
    """Returns the answers of `number` workers that train together."""
    addresses = [f"localhost:{port}" for port in free_ports(number)]
    tasks = [{"type": "worker", "index": index} for index in range(number)]
    return results(
        [
            start(
                case,
                cores[index % len(cores)],
                steps,
                sync_batch_norm,
                {"cluster": {"worker": addresses}, "task": task},
            )
            for index, task in enumerate(tasks)
        ]
    )


def measure(
    case: Case, cores: Sequence[int], sync_batch_norm: Sequence[bool]
) -> dict[str, list[float]]:
    """Returns seconds per step: one worker alone, two side by side, two together."""
    steps = results([start(case, cores[0], 0)])[0]["steps"]  # the same in every measurement
    found: dict[str, list[float]] = {"alone": [], "side by side": []}
    found |= {f"together, sync_batch_norm={flag}": [] for flag in sync_batch_norm}
    for index in range(_ROUNDS.value):
        alone = results([start(case, cores[index % 2], steps)])
        pair = results([start(case, core, steps) for core in cores])
        found["alone"].append(alone[0]["seconds_per_step"])
        # Workers that train together wait for the slower one in each step.
        found["side by side"].append(max(answer["seconds_per_step"] for answer in pair))
        for flag in sync_batch_norm:
            answers = cluster(case, cores, 2, steps, flag)
            found[f"together, sync_batch_norm={flag}"].append(
                max(answer["seconds_per_step"] for answer in answers)
            )
        say(f"{case.model}: round {index + 1} of {_ROUNDS.value}")
    return found


def table(case: Case, found: dict[str, list[float]]) -> str:
    medians = {kind: statistics.median(values) for kind, values in found.items()}
    rows = []
    for kind, values in found.items():
        workers = 1 if kind == "alone" else 2
        against = {"alone": [], "side by side": ["alone"]}.get(kind, ["alone", "side by side"])
        efficiencies = [f"{medians[other] / medians[kind]:.3f}" for other in against]
        rows.append(
            [
                kind,
                f"{1e3 * medians[kind]:.4g}",
                f"{1e3 * min(values):.4g} to {1e3 * max(values):.4g}",
                f"{workers * case.batch / medians[kind]:.4g}",
                *[*efficiencies, "", ""][:2],
            ]
        )
    head = ["", "ms a step, median", "least to most", "images/s in all"]
    return markdown_table([*head, "efficiency against alone", "against side by side"], rows)


def traffic(
    case: Case, cores: Sequence[int], sync_batch_norm: Sequence[bool]
) -> tuple[str, list[dict]]:
    """Counts the bytes that one worker passes to reductions per step, by number of workers."""
    cells, rows = [], []
    for number in (int(text) for text in _PROCESSES.value):
        for flag in sync_batch_norm:
            answer = cluster(case, cores, number, 1, flag)[0]
            count, size = len(answer["reduced_bytes"]), sum(answer["reduced_bytes"])
            cells.append([str(number), str(flag), str(count), f"{size / 1e6:.3f}"])
            rows.append({"workers": number, "sync_batch_norm": flag, **answer})
    head = ["workers", "sync_batch_norm", "reductions a step", "MB a step of a worker"]
    return markdown_table(head, cells), rows


def on_paper(rows: Sequence[dict[str, Any]]) -> str:
    """Estimates how long the reductions counted with two workers would take on each of RINGS.

    In a ring, each member sends `2 (n - 1) / n` of the bytes (Patarasuk & Yuan 2009). The latency
    is that of a tree, up and down: `2 log2(n)` messages.
    """
    cells = []
    two = [row for row in rows if row["workers"] == 2]
    for ring in RINGS:
        for row in two:
            sent = 2 * (ring.members - 1) / ring.members * sum(row["reduced_bytes"])
            bytes_ms = 1e3 * sent / ring.bandwidth
            messages = 2 * math.log2(ring.members) * len(row["reduced_bytes"])
            latency_ms = 1e3 * messages * ring.latency
            ms = bytes_ms + latency_ms
            least = ms * GOAL / (1 - GOAL)  # step / (step + ms) = GOAL
            numbers = [f"{value:.3g}" for value in (bytes_ms, latency_ms, ms)]
            cells.append([ring.title, str(row["sync_batch_norm"]), *numbers, f"≥ {least:.3g} ms"])
    head = ["", "sync_batch_norm", "bytes, ms", "latency, ms", "the two, ms"]
    text = (
        "On paper, all after the backward pass, nothing overlapped; bandwidth and latency assumed:"
    )
    last = f"efficiency ≥ {GOAL:g} if a step alone takes"
    return f"{text}\n\n{markdown_table([*head, last], cells)}"


def main(argv: Sequence[str]) -> None:
    unknown = (set(_CASES.value) - set(CASES)) | set(argv[1:])
    if unknown or not set(_SYNC_BATCH_NORM.value) <= {"false", "true"}:
        raise app.UsageError(f"cases: {', '.join(CASES)}; sync_batch_norm: false, true or both")
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise app.UsageError("needs two cores")
    flags_of_bn = [text == "true" for text in _SYNC_BATCH_NORM.value]
    document = [
        "# Data parallel, weak scaling",
        f"`python -m benchmarks.scaling {shlex.join(sys.argv[1:])}`, "
        f"{time.strftime('%Y-%m-%d %H:%M')}, on {hardware()}; one core a worker, float32, "
        f"n = {_ROUNDS.value} starts of each kind, in turns. Goal: efficiency ≥ {GOAL:g}.",
    ]
    raw: dict[str, Any] = {"hardware": hardware(), "argv": sys.argv[1:], "cases": {}}
    for name in _CASES.value:
        case = CASES[name]
        document.append(f"## {case.model}, {case.batch} images a worker")
        load = os.getloadavg()[0]
        found = measure(case, cores, flags_of_bn)
        volume, rows = traffic(case, cores, flags_of_bn)
        document += [f"Load before: {load:.2f}.", table(case, found), volume]
        document.append(on_paper(rows))
        raw["cases"][name] = {"load": load, "seconds_per_step": found, "traffic": rows}
        if _OUT.value:
            Path(_OUT.value).write_text("\n\n".join(document) + "\n", encoding="utf-8")
        if _JSON.value:
            Path(_JSON.value).write_text(json.dumps(raw, indent=1), encoding="utf-8")
    print("\n\n".join(document))


if __name__ == "__main__":
    app.run(main)
