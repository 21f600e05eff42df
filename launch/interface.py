"""What a back end provides: how it renders a run, and what it does with one."""

import dataclasses
from collections.abc import Iterator
from typing import Protocol

from launch.policy import State
from launch.spec import JobSpec


@dataclasses.dataclass(frozen=True)
class Document:
    """One part of what is sent, byte for byte: a command, a script, a request."""

    title: str
    text: str


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a back end reports about a run.

    Attributes:
        exit_code: the trainer's, once the run has ended; None if unknown.
        gone: whether what was created for the run no longer exists.
        message: one line for the user that explains the state, in the back end's words.
    """

    state: State
    exit_code: int | None = None
    gone: bool = False
    message: str = ""


class Job(Protocol):
    """What one back end created for one run.

    Built from the run's record: another process may have created it.
    """

    restarts_itself: bool  # the cluster restarts the run; `watch` only looks
    ends_with_watch: bool  # local processes, which nobody else looks after
    poll_s: float  # seconds between two looks
    backoff_s: float  # seconds before the first restart in a row; doubled before the next

    def create(self, attempt: int) -> None:
        """Creates what the run needs; skips parts that exist already."""
        ...

    def observe(self) -> Observation:
        """Returns the run's current state."""
        ...

    def delete(self) -> None:
        """Ends the run and deletes what was created; returns when nothing is left."""
        ...

    def progress(self) -> str:
        """Returns a text that changes with every checkpoint; "" if there is none, or unknown."""
        ...

    def logs(self, follow: bool) -> Iterator[str]:
        """Yields the lines that the run's processes printed."""
        ...


class Backend(Protocol):
    """A module that launch/backends.py names."""

    Options: type  # a frozen dataclass; each field is a flag

    def check(self, spec: JobSpec) -> None:
        """Raises LaunchError for anything that this back end cannot do."""
        ...

    def render(self, spec: JobSpec) -> list[Document]:
        """Returns exactly what would be sent for the first start. Pure, without a network."""
        ...
