"""The lines of log files that somebody else writes, as they come."""

from collections.abc import Iterator, Sequence
from pathlib import Path


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
