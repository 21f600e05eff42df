"""The time from the command to the first step, by phase."""

import time


class Stopwatch:
    """Measures named laps, in seconds, from its creation on."""

    def __init__(self):
        self._last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Ends a lap: adds the time since the last lap to `name`."""
        now = time.monotonic()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.laps.items())
        return f"{sum(self.laps.values()):.1f} s ({parts})"
