"""Where the time from the command to the first step goes."""

import time


class Stopwatch:
    """Named laps, in seconds, since it was made."""

    def __init__(self):
        self._last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Ends a lap: the time since the last one ended goes to `name`."""
        now = time.monotonic()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.laps.items())
        return f"{sum(self.laps.values()):.1f} s ({parts})"
