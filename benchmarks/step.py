"""Compares our train step with its peers: same model, batch, precision and threads, on the CPU.

    python -m benchmarks.step --out benchmarks/step-DATE.md --json benchmarks/step-DATE.json

Every contender is a separate process (benchmarks/peers/). Peers have separate environments, built
on first use in .venv-benchmarks/ (some 6 GB). All processes of a case are started first; then they
take turns, one at a time, each round starting with a different one. Medians over the rounds are
compared. `limit` is the model's convolutions alone.

All contenders see one batch that stays in memory, which measures the step, not the input. Peers get
normalised images; ours gets bytes and normalises them in the step, as in training.
"""

import os
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import app, flags

from benchmarks.contenders import Contender, Worker, started, take_turns
from benchmarks.machine import (
    hardware,
    markdown_table,
    say,
    verdict,
    versions_text,
    write_report,
)


class Case(NamedTuple):
    """A model, its input and precision. `goals`: ours should be this many times faster."""

    model: str
    batch: int  # images per step
    image_size: int  # pixels
    precision: str
    goals: Mapping[str, float]


_TF_GOALS_20 = {"keras_fit": 2.5, "keras_loop": 1.3, "model_garden": 1.1}
_TF_GOALS_50 = {"keras_fit": 1.6, "keras_loop": 1.2, "model_garden": 1.1}
CASES = {
    "resnet20_fp32": Case("resnet20", 128, 32, "float32", {**_TF_GOALS_20, "torch": 1.5}),
    "resnet20_bf16": Case("resnet20", 128, 32, "bfloat16", {**_TF_GOALS_20, "torch": 1.2}),
    "resnet50_fp32": Case("resnet50", 16, 224, "float32", {**_TF_GOALS_50, "torch": 1.3}),
    "resnet50_bf16": Case("resnet50", 16, 224, "bfloat16", {**_TF_GOALS_50, "torch": 1.1}),
    "dense": Case("dense", 8, 8, "float32", {"keras_fit": 10.0, "model_garden": 1.0}),
}
CONTENDERS = {
    "ours": Contender("ours", "", "ours"),
    "limit": Contender("convolutions alone", "", "limit"),
    "keras_fit": Contender("Keras 3 `fit`", "keras", "keras_fit"),
    "keras_fit_xla": Contender("Keras 3 `fit`, jit_compile=True", "keras", "keras_fit", "xla"),
    "keras_fit_loop100": Contender(
        "Keras 3 `fit`, steps_per_execution=100", "keras", "keras_fit", "loop100"
    ),
    "keras_loop": Contender("Keras 3, custom loop", "keras", "keras_loop"),
    "model_garden": Contender("Model Garden (orbit)", "model-garden", "model_garden"),
    "torch_eager": Contender("PyTorch, eager", "torch", "torch_eager_and_compile"),
    "torch_compile": Contender(
        "PyTorch, torch.compile", "torch", "torch_eager_and_compile", "compile"
    ),
}
# The most peers at once for each model: all processes must fit in 24 GiB of memory.
PEERS_AT_ONCE = {"resnet20": 8, "resnet50": 2, "dense": 8}
# Contenders that are not informative for a model.
LEFT_OUT = {"resnet20": ["keras_fit_loop100"], "resnet50": ["keras_fit_loop100"]}
LEFT_OUT["dense"] = ["limit", "keras_fit_xla"]

_CASES = flags.DEFINE_list("cases", list(CASES), "Cases to measure.")
_ONLY = flags.DEFINE_list("only", [], "Peers to measure; empty: all.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Measurements per contender.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 4.0, "Approximate duration of one measurement.")
_THREADS = flags.DEFINE_integer("threads", 2, "CPU cores to use.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Markdown file to write in addition to printing.")
_JSON = flags.DEFINE_string("json", None, "JSON file for the raw numbers.")


class Row(NamedTuple):
    """One contender's measurements in one group."""

    name: str
    images_per_second: list[float]
    seconds_per_step: list[float]
    cores: list[float]  # mean number of busy cores in each measurement
    peak_rss_bytes: int
    ready: dict[str, Any]
    runs: list[dict[str, Any]]

    @property
    def median(self) -> float:
        return statistics.median(self.images_per_second)


def arguments(case: Case, threads: int) -> list[str]:
    """Returns the flags that protocol.read_request parses."""
    return [
        f"--model={case.model}",
        f"--batch={case.batch}",
        f"--image_size={case.image_size}",
        f"--precision={case.precision}",
        f"--threads={threads}",
    ]


def measure(names: Sequence[str], case: Case, rounds: int, seconds: float, threads: int):
    """Measures contenders in turns; returns their rows and the machine's limits by `limit`."""
    machine: dict[str, Any] = {}
    contenders = {name: CONTENDERS[name] for name in names}
    with started(contenders, arguments(case, threads)) as workers:
        check_parameters(workers)
        if "limit" in workers:
            machine = workers["limit"].ask("machine")
        steps = {
            name: max(2, round(seconds / worker.ready["seconds_per_step"]))
            for name, worker in workers.items()
        }
        if case.model == "dense":  # whole loops of 100 steps
            steps = {name: -(-count // 100) * 100 for name, count in steps.items()}
        runs = take_turns(workers, steps, rounds)
        rows = []
        for name, worker in workers.items():
            per_step = [run["seconds"] / run["steps"] for run in runs[name]]
            rows.append(
                Row(
                    name,
                    [case.batch / value for value in per_step],
                    per_step,
                    [run["cpu_seconds"] / run["seconds"] for run in runs[name]],
                    worker.ask("memory")["peak_rss_bytes"],
                    worker.ready,
                    runs[name],
                )
            )
        return rows, machine


def check_parameters(workers: Mapping[str, Worker]) -> None:
    """Raises RuntimeError unless all contenders have the same number of parameters."""
    counts = {n: w.ready["parameters"] for n, w in workers.items() if n != "limit"}
    if len(set(counts.values())) != 1:
        raise RuntimeError(f"not the same model: parameters {counts}")


def groups(names: Sequence[str], model: str) -> list[list[str]]:
    """Splits the peers into groups that fit in memory; each also has ours and the limit."""
    always = [name for name in names if name in ("ours", "limit")]
    peers = [name for name in names if name not in always]
    at_once = PEERS_AT_ONCE[model]
    parts = [peers[start : start + at_once] for start in range(0, len(peers), at_once)]
    return [always + part for part in parts or [[]]]


def table(case: Case, rows: Sequence[Row], machine: Mapping[str, Any]) -> str:
    by_name = {row.name: row for row in rows}
    ours = by_name["ours"]
    limit = by_name.get("limit")
    torch = [row for row in rows if row.name.startswith("torch")]
    better_torch = max(torch, key=lambda row: row.median).name if torch else None
    cells = []
    for row in rows:
        key = "torch" if row.name == better_torch else row.name
        goal, ratio = case.goals.get(key), ours.median / row.median
        is_peer = row.name not in ("ours", "limit")
        cells.append(
            [
                CONTENDERS[row.name].title,
                f"{row.median:.4g}",
                f"{min(row.images_per_second):.4g} to {max(row.images_per_second):.4g}",
                duration(statistics.median(row.seconds_per_step)),
                f"{ratio:.2f}" if is_peer else "",
                verdict(ratio, goal),
                f"{row.median / limit.median:.0%}" if limit else "",
                f"{statistics.median(row.cores):.2f}",
                f"{row.peak_rss_bytes / 2**30:.2f} GiB",
                f"{row.ready['first_step_s']:.1f} s",
            ]
        )
    lines = [
        markdown_table(
            [
                "",
                "images/s, median",
                "least to most",
                "step",
                "ours is faster by",
                "goal",
                "share of convolutions alone",
                "cores busy",
                "peak memory",
                "first step",
            ],
            cells,
        )
    ]
    if machine and limit:
        rate = machine["flops_per_step"] / statistics.median(limit.seconds_per_step)
        lines += [
            "",
            f"Convolutions alone: {machine['flops_per_step'] / case.batch / 1e9:.3g} GFLOP an "
            f"image, {rate / 1e9:.0f} GFLOP/s; the best single one "
            f"{machine['best_flops_per_s'] / 1e9:.0f} GFLOP/s. Memory: copy "
            f"{machine['copy_bytes_per_s'] / 1e9:.1f} GB/s, add "
            f"{machine['add_bytes_per_s'] / 1e9:.1f} GB/s.",
        ]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{1e6 * seconds:.1f} µs"
    return f"{1e3 * seconds:.4g} ms"


def main(argv: Sequence[str]) -> None:
    peers = [name for name in CONTENDERS if name not in ("ours", "limit")]
    unknown = (set(_CASES.value) - set(CASES)) | (set(_ONLY.value) - set(peers)) | set(argv[1:])
    if unknown:
        known = f"cases {', '.join(CASES)}; peers {', '.join(peers)}"
        raise app.UsageError(f"unknown: {', '.join(sorted(unknown))}; known: {known}")
    # Processes started from here on inherit the affinity.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: _THREADS.value])

    document = [
        "# The train step against its peers",
        f"`python -m benchmarks.step {shlex.join(sys.argv[1:])}`, "
        f"{time.strftime('%Y-%m-%d %H:%M')}, on {hardware()}. n = {_ROUNDS.value} measurements of "
        f"about {_SECONDS.value:g} s, in turns; {_THREADS.value} thread(s).",
    ]
    raw: dict[str, Any] = {"hardware": hardware(), "argv": sys.argv[1:], "cases": {}}
    versions: dict[str, dict[str, str]] = {}
    for case_name in _CASES.value:
        case = CASES[case_name]
        wanted = ["ours", "limit", *(_ONLY.value or peers)]
        names = [name for name in wanted if name not in LEFT_OUT[case.model]]
        document.append(
            f"## {case.model}, {case.precision}, {case.batch} images of {case.image_size} pixels"
        )
        raw["cases"][case_name] = []
        for group in groups(names, case.model):
            load = os.getloadavg()[0]
            say(f"{case_name}: {', '.join(group)}; load before {load:.2f}")
            rows, machine = measure(group, case, _ROUNDS.value, _SECONDS.value, _THREADS.value)
            for row in rows:
                environment = CONTENDERS[row.name].environment or "ours"
                versions.setdefault(environment, {}).update(row.ready["versions"])
            document += [f"Load before: {load:.2f}.", table(case, rows, machine)]
            raw["cases"][case_name].append(
                {"load": load, "machine": machine, "rows": [row._asdict() for row in rows]}
            )
            write_report(
                document, versions, raw, _OUT.value, _JSON.value
            )  # after every group, so that an interruption loses little
    print("\n\n".join([*document, versions_text(versions)]))


if __name__ == "__main__":
    app.run(main)
