"""How fast a run trains, and how many steps a loop should have."""

import math
from typing import Literal

# A signal is served between two loops, and clouds give 30 s from the signal to the kill. `auto`
# aims at loops of 2 s, well under 5 s even if a machine's speed varies.
_LOOP_SECONDS = 2.0


class Pace:
    """Measures steps per second, and chooses the length of the next loop.

    Loops that include tracing and compiling do not count: the first, and the first of each image
    size.

    Args:
        steps_per_loop: the config's: a number, or `auto` for loops of about 2 s.
    """

    def __init__(self, steps_per_loop: int | Literal["auto"]):
        self.seconds = 0.0  # of all loops
        self.loop_steps = 1 if steps_per_loop == "auto" else steps_per_loop
        self._auto = steps_per_loop == "auto"
        self._traces = self._steps = 0
        self._timed_seconds = 0.0

    def add(self, num_steps: int, seconds: float, traces: int) -> None:
        """Counts a loop of this process.

        Args:
            traces: how often the loop has been traced so far.
        """
        if self.seconds and traces == self._traces:
            self._steps += num_steps
            self._timed_seconds += seconds
        self.seconds += seconds
        self._traces = traces

    def adapt(self, num_steps: int, seconds: float) -> None:
        """With `auto`, chooses the next loop's length: at most four times the last one, since the
        first loop includes tracing.

        Args:
            seconds: how long `num_steps` took; the mean over all workers, so that they choose the
                same length.
        """
        if self._auto:
            wanted = int(num_steps * _LOOP_SECONDS / seconds)
            self.loop_steps = max(1, min(4 * self.loop_steps, wanted))

    @property
    def steps_per_second(self) -> float:
        """NaN before a loop without tracing."""
        return self._steps / self._timed_seconds if self._steps else math.nan
