"""The lines of log files that somebody else writes, as they come."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from launch.records import Record
from launch.signals import Signals

_LOOK_S = 0.2
_CHUNK = 2**20  # bytes


class Tail:
    """Reads on where it was; the file may not be there yet."""

    def __init__(self, path: Path, prefix: str = ""):
        self._path, self._prefix = path, prefix
        self._position = 0
        self._rest = b""

    def lines(self, last: bool = False) -> Iterator[str]:
        """The whole lines since the last call, each behind the prefix, and bytes that are no text
        as escapes; lines beyond a length that nobody reads are cut into several.

        Args:
            last: also what has no end of line yet: nothing more will come.
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
    """Of what stands in the last bytes of a file that may be long."""
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
    """The file that a worker writes to, of one start."""
    return record.logs / f"{attempt}-{rank}.log"


def of_starts(record: Record, signals: Signals, is_going: Callable[[], bool]) -> Iterator[str]:
    """All lines of all starts behind their worker's rank, until the run does not go on, or a signal
    comes."""
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
