"""Waiting that a signal interrupts: signals are noted here, and handled in one place."""

import os
import select
import signal
import time
from collections.abc import Sequence
from types import FrameType, TracebackType


class Signals:
    """Catches SIGINT, SIGTERM and SIGHUP within a `with` block.

    Attributes:
        received: the signals so far, in order.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._old: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # ignored by nohup or a shell: stay so
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
        """Whether a second signal asks for haste. A closing terminal may send SIGHUP twice."""
        return sum(number != signal.SIGHUP for number in self.received[1:]) > 0

    def wait(self, seconds: float, others: Sequence[int] = ()) -> list[int]:
        """Waits until a file descriptor can be read, a signal arrives, or the time is up.

        A signal that arrived since the last wait ends the wait at once.

        Args:
            others: the file descriptors to wait for.

        Returns:
            Those of `others` that can be read.
        """
        ready, _, _ = select.select([self._pipe[0], *others], [], [], max(0.0, seconds))
        if self._pipe[0] in ready:
            os.read(self._pipe[0], 4096)
        return [descriptor for descriptor in ready if descriptor != self._pipe[0]]

    def now(self) -> float:
        """Returns the seconds of a clock that never goes back."""
        return time.monotonic()
