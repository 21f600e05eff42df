"""What a run is doing now: the last line of a terminal, which moves, and the lines above it.

A thread draws the line, since the main thread is inside TensorFlow for seconds or minutes at a
time. TensorFlow releases Python's lock while it computes, compiles, and reads and writes files.
"""

import contextlib
import dataclasses
import enum
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

_TICK_S = 0.5
_SECONDS_BETWEEN_LINES = 30  # without a terminal, about a phase that lasts
_BAR_CELLS = 10  # at least


class Phase(enum.StrEnum):
    """What a run is doing, as the user reads it."""

    TRACING = "tracing the train step"
    FIRST_LOOP = "first loop, with compiling"  # of each image size
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving a checkpoint"
    SAVING_BEST = "saving the best weights"  # from which no run resumes


@dataclasses.dataclass
class _Doing:
    phase: Phase
    since: float
    lines: int = 0  # printed about it


class Progress:
    """Shows how far a run is, and what it is doing. A context manager, which ends its thread.

    On a terminal, the last line is a bar with `[elapsed<left]` and numbers during the training, or
    the phase and its seconds; it is drawn on stderr. Elsewhere, a phase other than the training
    gets a plain line every 30 s, on stdout.

    Args:
        step: the step from which the run continues.
        is_shown: if not, nothing is drawn, but the phases are still known.
        clock: returns seconds.

    Attributes:
        has_line: whether there is a line that moves.
        step: how many steps are done; set it.
        first_step: where this process began.
    """

    def __init__(
        self,
        step: int,
        total_steps: int,
        *,
        is_shown: bool,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.first_step = self.step = step
        self.total_steps = total_steps
        self.is_shown = is_shown
        self.has_line = is_shown and sys.stderr.isatty()
        self._clock = clock
        self._began = clock()
        self._doing: _Doing | None = None
        self._took: dict[Phase, float] = {}
        self._ended_at: dict[Phase, float] = {}
        self._numbers: Sequence[str] = ()
        self._seconds_left = math.nan
        self._lock = threading.Lock()  # held while a line is written
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> "Progress":
        if self.is_shown:
            self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        if not self.is_shown:
            return
        self._closing.set()
        self._thread.join()
        with self._lock, contextlib.suppress(OSError):
            if self.has_line:
                self._draw()
                print(file=sys.stderr, flush=True)
            self.has_line = False

    @contextlib.contextmanager
    def doing(self, phase: Phase) -> Iterator[None]:
        """Shows the phase until the block ends. Phases are not nested."""
        doing = self._doing = _Doing(phase, self._clock())
        try:
            yield
            self._ended_at[phase] = self._clock()
            self._took[phase] = self._ended_at[phase] - doing.since
        finally:
            self._doing = None

    @property
    def phase(self) -> Phase | None:
        """None between two phases."""
        doing = self._doing
        return doing.phase if doing else None

    def took(self, phase: Phase) -> float:
        """Returns how many seconds the phase took when it last ended; 0 before."""
        return self._took.get(phase, 0.0)

    def seconds_since(self, phase: Phase) -> float | None:
        """Returns how long ago the phase last ended, or None if it never did."""
        ended_at = self._ended_at.get(phase)
        return None if ended_at is None else self._clock() - ended_at

    def show(self, numbers: Sequence[str], seconds_left: float) -> None:
        """Sets what stands behind the bar.

        Args:
            numbers: texts; the last ones are left out on a narrow terminal.
            seconds_left: until the end of the run; NaN if unknown.
        """
        self._numbers, self._seconds_left = numbers, seconds_left

    def say(self, line: str) -> None:
        """Prints a line on stdout, above the line that moves."""
        with self._lock:
            if self.has_line:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            print(line, flush=True)
            if self.has_line:
                self._draw()

    def tick(self) -> None:
        """Draws the line, or prints one if it is time. The thread calls it all the time."""
        if self.has_line:
            with self._lock:
                self._draw()
        elif (doing := self._doing) and doing.phase != Phase.TRAINING:
            due = (doing.lines + 1) * _SECONDS_BETWEEN_LINES
            if self._clock() - doing.since >= due:
                doing.lines += 1
                self.say(f"{doing.phase}: {due} s so far")

    def line(self, width: int) -> str:
        """Returns the line for a terminal of this many columns, with the longest text that leaves
        the bar ten cells.
        """
        counts = f" {self.step}/{self.total_steps}"
        doing, now = self._doing, self._clock()
        if doing and doing.phase != Phase.TRAINING:
            text = f" {doing.phase}, {int(now - doing.since)} s"
            choices = [counts + text, text]
        else:
            known = math.isfinite(self._seconds_left)
            left = tqdm.format_interval(self._seconds_left) if known else "?"
            counts += f" [{tqdm.format_interval(now - self._began)}<{left}]"
            numbers = self._numbers
            texts = [" " + ", ".join(numbers[:count]) for count in range(len(numbers), 0, -1)]
            choices = [*(counts + text for text in texts), counts]
        room = width - len("100%||") - _BAR_CELLS
        text = next((choice for choice in choices if len(choice) <= room), choices[-1])
        return tqdm.format_meter(
            self.step,
            self.total_steps,
            0.0,
            ncols=width,
            ascii="utf" not in (sys.stderr.encoding or "").lower(),
            bar_format="{percentage:3.0f}%|{bar}|" + text,
        )

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # the terminal has gone; the run continues
            while not self._closing.wait(_TICK_S):
                self.tick()

    def _draw(self) -> None:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80
        # The last column stays free: some terminals wrap after it.
        print(f"\r{self.line(columns - 1)}\x1b[K", end="", file=sys.stderr, flush=True)
