"""Helpers that all benchmarks share: the hardware's description and the report."""

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def hardware() -> str:
    """Describes the processor, the cores that this process may use, and the memory."""
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
    """Returns whether a ratio reached its goal, as text; empty without a goal."""
    return "" if goal is None else f"≥ {goal:g}: {'met' if ratio >= goal else 'missed'}"


def versions_text(versions: Mapping[str, Mapping[str, str]]) -> str:
    """Lists each environment's package versions, as Markdown."""
    lines = [
        f"- {environment}: {', '.join(f'{name} {value}' for name, value in found.items())}"
        for environment, found in versions.items()
    ]
    return "\n".join(["## Versions", "", *lines])


def write_report(
    document: Sequence[str],
    versions: Mapping[str, Mapping[str, str]],
    raw: Mapping[str, Any],
    out: str | None,
    json_out: str | None,
) -> None:
    """Writes the paragraphs as Markdown to `out` and all numbers to `json_out`, if not None."""
    if out:
        text = "\n\n".join([*document, versions_text(versions)])
        Path(out).write_text(f"{text}\n", encoding="utf-8")
    if json_out:
        text = json.dumps({**raw, "versions": versions}, indent=1)
        Path(json_out).write_text(text, encoding="utf-8")
