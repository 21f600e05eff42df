"""When a run that has ended is started again: one policy for all back ends.

What the trainer's exit codes mean here:
    0                    done
    42, 143              saved after a signal (143: the signal came before it could save): start it
                         again, without charge, as long as it gets on between two ends
    129 to 255           killed, or the group of workers broke (200): start it again, charged
    1 to 128 otherwise   the user's error, or a bug: starting it again would not help
"""

import dataclasses
import enum
from collections.abc import Sequence

# So many ends in a row without a new checkpoint, and it is no preemption that stops the run.
MAX_WITHOUT_PROGRESS = 5


class State(enum.StrEnum):
    """Where a run is."""

    QUEUED = enum.auto()
    PROVISIONING = enum.auto()
    RUNNING = enum.auto()
    PREEMPTED = enum.auto()
    SUCCEEDED = enum.auto()
    FAILED = enum.auto()
    CANCELLED = enum.auto()
    UNKNOWN = enum.auto()

    @property
    def is_final(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Outcome(enum.Enum):
    """What an exit code asks for."""

    DONE = enum.auto()
    RESTART = enum.auto()
    RESTART_CHARGED = enum.auto()
    FAIL = enum.auto()


def outcome(exit_code: int) -> Outcome:
    if exit_code == 0:
        return Outcome.DONE
    if exit_code in (42, 143):
        return Outcome.RESTART
    return Outcome.RESTART_CHARGED if 129 <= exit_code <= 255 else Outcome.FAIL


def first_to_end(codes: Sequence[int | None]) -> int | None:
    """Which worker brought the others down, of several that ended too close to tell.

    Args:
        codes: the exit codes by rank; None for a worker that runs.

    Returns:
        its rank; None where nobody failed. Who was killed did it, then who has an error of its own;
        200 and 42 are what others end with because of it.
    """
    failed = [rank for rank, code in enumerate(codes) if code]

    def later(rank: int) -> tuple[bool, bool]:
        code = codes[rank] or 0
        return code in (42, 143, 200), not 129 <= code < 200

    return min(failed, key=later, default=None)


def shell_code(returncode: int) -> int:
    """Of a process, as a shell says it: 137 where Python has -9."""
    return 128 - returncode if returncode < 0 else returncode


@dataclasses.dataclass
class Restarts:
    """What was restarted so far, and whether once more.

    Attributes:
        attempt: the number of restarts, 0 for the first start.
        charged: those that count towards `max_restarts`.
        without_progress: the last ones in a row after which no new checkpoint was there.
        progress: what the last checkpoint was at the last end; "" for none.
    """

    attempt: int = 0
    charged: int = 0
    without_progress: int = 0
    progress: str = ""

    def refusal(self, charged: bool, max_restarts: int, progress: str) -> str:
        """Counts one more restart. Returns "" where it may be, or why not."""
        if charged and self.charged >= max_restarts:
            return f"it was restarted {self.charged} times already (--max-restarts)"
        without_progress = 0 if progress != self.progress else self.without_progress + 1
        if without_progress >= MAX_WITHOUT_PROGRESS:
            return f"it ended {without_progress} times in a row without a new checkpoint"
        self.attempt += 1
        self.charged += charged
        self.without_progress = without_progress
        self.progress = progress
        return ""
