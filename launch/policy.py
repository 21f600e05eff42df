"""When a run that has ended is restarted: one policy for all back ends.

What the trainer's exit codes mean here:
    0                    done
    42, 143              saved after a signal (143: the signal arrived before it could save):
                         restart without charge, as long as it makes progress between two ends
    129 to 255           killed, or the group of workers broke (200): restart, charged
    1 to 128 otherwise   a user error or a bug: a restart would not help
"""

import dataclasses
import enum
from collections.abc import Sequence

# After this many ends in a row without a new checkpoint, preemption is not the cause.
MAX_WITHOUT_PROGRESS = 5


class State(enum.StrEnum):
    """The state of a run."""

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
    """What to do after an exit code."""

    DONE = enum.auto()
    RESTART = enum.auto()
    RESTART_CHARGED = enum.auto()
    FAIL = enum.auto()


def outcome(exit_code: int) -> Outcome:
    """Returns what to do after this exit code of the trainer."""
    if exit_code == 0:
        return Outcome.DONE
    if exit_code in (42, 143):
        return Outcome.RESTART
    return Outcome.RESTART_CHARGED if 129 <= exit_code <= 255 else Outcome.FAIL


def first_to_end(codes: Sequence[int | None]) -> int | None:
    """Returns the rank of the worker that brought the others down, or None if none failed.

    For workers that ended too close together to tell: first one that was killed, then one with its
    own error. The others end with 200 or 42 because of it.

    Args:
        codes: the exit codes by rank; None for a worker that still runs.
    """
    failed = [rank for rank, code in enumerate(codes) if code]

    def later(rank: int) -> tuple[bool, bool]:
        code = codes[rank] or 0
        return code in (42, 143, 200), not 129 <= code < 200

    return min(failed, key=later, default=None)


def shell_code(returncode: int) -> int:
    """Returns a process's exit code as a shell reports it: 137 for Python's -9."""
    return 128 - returncode if returncode < 0 else returncode


@dataclasses.dataclass
class Restarts:
    """Counts restarts, and decides on one more.

    Attributes:
        attempt: the number of restarts; 0 for the first start.
        charged: the restarts that count towards `max_restarts`.
        without_progress: the latest ends in a row without a new checkpoint.
        progress: identifies the last checkpoint at the last end; "" for none.
    """

    attempt: int = 0
    charged: int = 0
    without_progress: int = 0
    progress: str = ""

    def refusal(self, charged: bool, max_restarts: int, progress: str) -> str:
        """Counts one more restart and returns "", or returns why it is refused."""
        if charged and self.charged >= max_restarts:
            return f"already restarted {self.charged} times (--max-restarts)"
        without_progress = 0 if progress != self.progress else self.without_progress + 1
        if without_progress >= MAX_WITHOUT_PROGRESS:
            return f"it ended {without_progress} times in a row without a new checkpoint"
        self.attempt += 1
        self.charged += charged
        self.without_progress = without_progress
        self.progress = progress
        return ""
