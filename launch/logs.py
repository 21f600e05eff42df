"""Lines of log files that other processes write, as they arrive."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from launch.records import Record
from launch.signals import Signals

_LOOK_S = 0.2
_CHUNK = 2**20  # bytes


class Tail:
    """Reads the new lines of a file, which need not exist yet."""

    def __init__(self, path: Path, prefix: str = ""):
        self._path, self._prefix = path, prefix
        self._position = 0
        self._rest = b""

    def lines(self, last: bool = False) -> Iterator[str]:
        """Yields the complete lines since the last call, each after the prefix.

        Bytes that are not text become escapes; lines over 1 MiB are cut into several.

        Args:
            last: also yield an incomplete last line: nothing more will arrive.
        """
        try:
            file = open(self._path, "rb")  # noqa: SIM115 (a generator: closed below)
        except FileNotFoundError:
            return
        with file:
            file.seek(self._position)
            while data := file.read(_CHUNK):
                self._position += len(data)
                *whole, self._rest = (self._rest + data).split(b"\n")
                if len(self._rest) > _CHUNK:
                    whole, self._rest = [*whole, self._rest], b""
                yield from map(self._text, whole)
        if last and self._rest:
            rest, self._rest = self._rest, b""
            yield self._text(rest)

    def _text(self, line: bytes) -> str:
        return self._prefix + line.decode(errors="backslashreplace").rstrip("\r")


def last_lines(path: Path, number: int, prefix: str = "") -> list[str]:
    """Returns the last lines of a file, at most those in its last 64 KiB."""
    try:
        with open(path, "rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - _CHUNK // 16)
            file.seek(start)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    lines = [line for line in lines if line][-number:]
    return [prefix + line.decode(errors="backslashreplace").rstrip("\r") for line in lines]


def path(record: Record, attempt: int, rank: int) -> Path:
    """Returns the file that a worker writes to during one start of the run."""
    return record.logs / f"{attempt}-{rank}.log"


def of_starts(record: Record, signals: Signals, is_going: Callable[[], bool]) -> Iterator[str]:
    """Yields the lines of all starts, each after its worker's rank, until the run ends or a signal
    arrives."""
    tails: dict[Path, Tail] = {}
    while True:
        ended = not is_going()
        for file in sorted(record.logs.glob("*-*.log"), key=_attempt_and_rank):
            tail = tails.setdefault(file, Tail(file, f"[{_attempt_and_rank(file)[1]}] "))
            yield from tail.lines(last=ended)
        if ended or signals.received:
            return
        signals.wait(_LOOK_S)


def _attempt_and_rank(file: Path) -> tuple[int, int]:
    attempt, rank = file.stem.split("-")
    return int(attempt), int(rank)
