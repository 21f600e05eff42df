"""What a back end is: how it shows a run, and what it does with one."""

import dataclasses
from collections.abc import Iterator
from typing import Protocol

from launch.policy import State
from launch.spec import JobSpec


@dataclasses.dataclass(frozen=True)
class Document:
    """A part of what is sent, to the byte: a command, a script, a request."""

    title: str
    text: str


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a look at the other side showed.

    Attributes:
        exit_code: the trainer's, of a run that has ended; None where nobody knows it.
        gone: what was made for the run is not there any more.
        message: one line for the user: why, as the other side says it.
    """

    state: State
    exit_code: int | None = None
    gone: bool = False
    message: str = ""


class Job(Protocol):
    """What one back end made for one run. Built from the run's record; it may have been made
    by another process before."""

    restarts_itself: bool  # the other side starts the run again; `watch` only looks
    ends_with_watch: bool  # its processes are of this machine, and nobody else looks after them
    poll_s: float  # between two looks
    backoff_s: float  # before the first re-creation in a row; twice that before the next

    def create(self, attempt: int) -> None:
        """Makes all that the run needs; nothing twice, where a part of it is there already."""
        ...

    def observe(self) -> Observation: ...

    def delete(self) -> None:
        """Ends the run and takes away all that was made; returns when nothing is left."""
        ...

    def progress(self) -> str:
        """What changes with every new checkpoint; "" where there is none or nobody knows."""
        ...

    def logs(self, follow: bool) -> Iterator[str]:
        """The lines that the run's processes printed."""
        ...


class Backend(Protocol):
    """A module that launch/backends.py names."""

    Options: type  # a frozen dataclass; each field is a flag

    def check(self, spec: JobSpec) -> None:
        """Raises LaunchError for what this back end cannot do."""
        ...

    def render(self, spec: JobSpec) -> list[Document]:
        """Exactly what would be sent for the first start: pure, no network, the same each time."""
        ...
