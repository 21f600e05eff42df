"""Signals that stop a run after the current loop, with everything saved."""

import contextlib
import ctypes
import os
import signal
import threading
from typing import Any

from trainer.run.progress import Phase, Progress

# A forked child, such as a worker of a user's own source, must not write to its parent's pipe.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class StopRequest:
    """Set by SIGTERM (a preemption) and SIGINT (Ctrl-C). A second Ctrl-C ends the process at once.

    Python calls a handler once the main thread returns from TensorFlow, after a loop of steps or
    the first compilation. So a thread answers: it reads the numbers of the signals from a pipe, to
    which Python writes them at once.

    The handlers stay until the process ends, or the next run in it takes over.

    Attributes:
        progress: what the run is doing; None before its log is open.
    """

    def __init__(self):
        self.requested = False
        self.progress: Progress | None = None
        received, notify = os.pipe()
        os.set_blocking(notify, False)  # as `set_wakeup_fd` demands
        threading.Thread(target=self._answer, args=(received,), daemon=True).start()
        last = signal.set_wakeup_fd(notify, warn_on_full_buffer=False)
        if last != -1:
            os.close(last)  # an earlier run's, whose thread ends
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        del number, frame
        self.requested = True

    def _answer(self, received: int) -> None:
        asked = False
        with open(received, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                if number[0] not in (signal.SIGINT, signal.SIGTERM):
                    continue
                if not asked:
                    _end_on_ctrl_c()
                    # A failed print must not end the thread, nor the run.
                    with contextlib.suppress(OSError, ValueError):
                        self._say(advice(signal.Signals(number[0]), self.progress))
                elif number[0] == signal.SIGINT:  # it came before `_end_on_ctrl_c`
                    os.kill(os.getpid(), signal.SIGINT)
                asked = True

    def _say(self, line: str) -> None:
        if self.progress is not None:
            self.progress.say(line)
        else:
            print(line, flush=True)


def _end_on_ctrl_c() -> None:
    """Lets SIGINT end the process, as `signal.signal(SIGINT, SIG_DFL)` does, but from any thread.

    Python's own `signal.signal` works in the main thread alone, which may be inside TensorFlow.
    """
    function = ctypes.CDLL(None).signal
    function.argtypes, function.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    function(signal.SIGINT, None)  # SIG_DFL is 0


def advice(number: signal.Signals, progress: Progress | None) -> str:
    """Returns the line for the user after a signal: when the run stops, and what Ctrl-C does."""
    again = "Ctrl-C again" if number == signal.SIGINT else "Ctrl-C"
    return f"stopping after {_end(progress)}; {again} ends at once, and loses {_loss(progress)}"


def _end(progress: Progress | None) -> str:
    """Returns after what a run stops that is asked to now."""
    phase = progress.phase if progress is not None else None
    if progress is None or phase in (Phase.TRACING, Phase.FIRST_LOOP):
        return "the first loop of steps, once it is compiled"
    if phase not in (Phase.EVALUATING, Phase.SAVING, Phase.SAVING_BEST):
        return "this loop of steps"
    # The workers have agreed already on what follows the loop that has just ended.
    is_last = progress.step == progress.total_steps
    return "the last evaluation, as it would anyway" if is_last else "one more loop of steps"


def _loss(progress: Progress | None) -> str:
    """Returns what ends with the process."""
    seconds = progress.seconds_since(Phase.SAVING) if progress is not None else None
    if seconds is not None:
        return f"what was trained since the last checkpoint ({seconds:.0f} s ago)"
    if progress is None or progress.step == progress.first_step:
        return "nothing: no step is trained yet"
    return "what was trained since this start, of which there is no checkpoint yet"
