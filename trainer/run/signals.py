"""Signals that stop a run after the current loop, with everything saved."""

import contextlib
import signal
from typing import Any


class StopRequest:
    """Set by SIGTERM (a preemption) and SIGINT (Ctrl-C). A second Ctrl-C ends the run at once."""

    def __init__(self):
        self.requested = False
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        del frame
        self.requested = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # In `trainer | tee log`, Ctrl-C ends tee as well: a failed print must not end the run.
        with contextlib.suppress(OSError, RuntimeError):
            print("stopping after this loop; Ctrl-C stops at once, unsaved", flush=True)
