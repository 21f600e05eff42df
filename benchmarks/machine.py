"""What benchmarks share: where they are, and on what."""

import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def hardware() -> str:
    """The processor, the cores that this process may use, and memory."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} core(s) "
        f"used of {os.cpu_count()}, {memory:.0f} GiB"
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def verdict(ratio: float, goal: float | None) -> str:
    """Of a ratio that is to be at least its goal."""
    return "" if goal is None else f"≥ {goal:g}: {'met' if ratio >= goal else 'missed'}"
