"""Waiting that a signal ends: Ctrl-C and its like are taken note of, and acted on at one place."""

import os
import select
import signal
import time
from collections.abc import Sequence
from types import FrameType, TracebackType


class Signals:
    """Takes SIGINT, SIGTERM and SIGHUP over, for as long as it is open.

    Attributes:
        received: the signals so far, in order.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._old: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup's wish, or a shell's
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # pyright: ignore
        for end in self._pipe:
            os.close(end)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        os.write(self._pipe[1], b"!")

    @property
    def hurry(self) -> bool:
        """A second one that somebody sent on purpose: a terminal that closes may send two."""
        return sum(number != signal.SIGHUP for number in self.received[1:]) > 0

    def wait(self, seconds: float, others: Sequence[int] = ()) -> list[int]:
        """Until one of these file descriptors can be read, a signal comes, or the time is up.

        A signal that came since the last wait ends it at once.

        Returns:
            those of `others` that can be read.
        """
        ready, _, _ = select.select([self._pipe[0], *others], [], [], max(0.0, seconds))
        if self._pipe[0] in ready:
            os.read(self._pipe[0], 4096)
        return [descriptor for descriptor in ready if descriptor != self._pipe[0]]

    def now(self) -> float:
        """Seconds of a clock that only goes forward."""
        return time.monotonic()
