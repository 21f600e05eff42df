"""The free memory of this machine, or of the container or job that this process is in. Linux only.

No TensorFlow.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class FreeMemory(NamedTuple):
    """Bytes that can still be allocated, and the memory that they are a part of, for messages."""

    bytes: int
    of: str


class _Controller(NamedTuple):
    """The files of a version of Linux' control groups (cgroups) that limit memory.

    Page cache counts as used there. The kernel drops its inactive part first, before it kills.
    """

    limit: str
    used: str
    inactive: str  # a line of memory.stat


_V1 = _Controller("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Controller("memory.max", "memory.current", "inactive_file")


def free_host_memory(root: Path = Path("/")) -> FreeMemory | None:
    """Returns the least of what the machine has free and what the limits of this process' control
    groups leave; None if the machine does not say, without /proc.

    Containers and Slurm set such limits. /proc/meminfo does not know them.
    """
    found = _fields(root / "proc/meminfo")
    if "MemAvailable" not in found:
        return None
    every = [FreeMemory(found["MemAvailable"] * 1024, "this machine's memory")]
    for folder, files in _groups(root):
        with contextlib.suppress(OSError, ValueError):  # no such group; no number: "max"
            limit = int((folder / files.limit).read_text())
            used = int((folder / files.used).read_text())
            cache = _fields(folder / "memory.stat").get(files.inactive, 0)
            text = f"the memory of this container or job (limited by {folder / files.limit})"
            every.append(FreeMemory(max(0, limit - used + cache), text))
    return min(every)


def _groups(root: Path) -> Iterator[tuple[Path, _Controller]]:
    """Yields the folders of this process' control groups for memory, and of their parents.

    Some may not exist: a container often sees its own group as the root, by another path.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:  # such as 4:memory:/slurm/job_3, or 0::/user.slice for version 2
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, files = root / "sys/fs/cgroup", _V2
        elif "memory" in controllers.split(","):
            mount, files = root / "sys/fs/cgroup/memory", _V1
        else:
            continue
        folder = mount / path.lstrip("/")
        while folder != mount:
            yield folder, files
            folder = folder.parent
        yield mount, files


def _fields(path: Path) -> dict[str, int]:
    """Returns the numbers of a file with lines such as `MemFree:  12 kB` or `cache 12`, by name."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    words = [line.replace(":", " ").split() for line in lines]
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}
