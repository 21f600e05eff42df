"""The lines of log files that somebody else writes, as they come."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from launch.records import Record
from launch.signals import Signals

_LOOK_S = 0.2


class Tail:
    """Reads on where it was; the file may not be there yet."""

    def __init__(self, path: Path, prefix: str = ""):
        self._path, self._prefix = path, prefix
        self._position = 0
        self._rest = b""

    def lines(self, last: bool = False) -> Iterator[str]:
        """The whole lines since the last call, each behind the prefix, and bytes that are no text
        as escapes.

        Args:
            last: also what has no end of line yet: nothing more will come.
        """
        try:
            with open(self._path, "rb") as file:
                file.seek(self._position)
                data = file.read()
        except FileNotFoundError:
            return
        self._position += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        if last and self._rest:
            whole, self._rest = [*whole, self._rest], b""
        for line in whole:
            yield self._prefix + line.decode(errors="backslashreplace").rstrip("\r")


def last_lines(path: Path, number: int, prefix: str = "") -> Sequence[str]:
    return list(Tail(path, prefix).lines(last=True))[-number:]


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
