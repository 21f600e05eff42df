"""Records of the launcher's runs: one folder each, written before anything is created elsewhere.

HOME/NAME/record.json  cancel  lock  logs/    HOME: $LAUNCH_HOME, or ~/.local/state/trainer-launch

The holder of the lock acts on the run and writes record.json; `cancel` creates the file `cancel`.
"""

import contextlib
import dataclasses
import datetime
import difflib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch import backends
from launch import spec as spec_lib
from launch.errors import LaunchError, redacted
from launch.policy import Restarts, State
from launch.spec import JobSpec
from trainer import files

_VERSION = 1
_SHOWN = 5  # runs to name in a message
PRIVATE = 0o600  # the mode of files that only this account can read


def home() -> Path:
    """Returns the folder of all records. With Slurm, all nodes must see it."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(os.environ.get("LAUNCH_HOME") or f"{state}/trainer-launch").resolve()


@dataclasses.dataclass
class Record:
    """What is known about one run.

    Attributes:
        created: when it was submitted, ISO 8601 in UTC.
        state: as last seen.
        message: one line that explains the state.
        exit_code: the trainer's, once the run has ended; None if unknown.
        was_running: whether it ever ran: if it fails before, the config or a quota is to blame.
        handle: what the back end needs to find what it created.
    """

    spec: JobSpec
    created: str
    state: State = State.QUEUED
    message: str = ""
    exit_code: int | None = None
    was_running: bool = False
    restarts: Restarts = dataclasses.field(default_factory=Restarts)
    handle: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def path(self) -> Path:
        return Path(self.spec.record_dir)

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def save(self) -> None:
        """Replaces record.json; readers see the old record or the new one, also after a crash."""
        _write(self.path, self)

    def set_state(self, state: State, message: str = "", exit_code: int | None = None) -> None:
        self.state, self.message, self.exit_code = state, redacted(message), exit_code
        self.save()

    @property
    def is_cancelled(self) -> bool:
        return (self.path / "cancel").exists()

    def cancel(self) -> None:
        """Asks the process that watches the run, now or later, to end it."""
        (self.path / "cancel").touch(mode=PRIVATE)

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Yields whether this process got the lock, and may act on the run until the block ends."""
        with contextlib.ExitStack() as stack:
            yield _lock(stack, self.path / "lock")

    @property
    def is_watched(self) -> bool:
        path = self.path / "lock"
        try:
            with files.locked(path, wait=False, shared=True, mode=PRIVATE):
                return False  # shared: two processes that ask do not see each other
        except BlockingIOError:
            return True
        except OSError:  # a read-only home
            return False


def _lock(stack: contextlib.ExitStack, path: Path) -> bool:
    """Tries for half a second: `is_watched` of another process holds the lock for less."""
    until = time.monotonic() + 0.5
    while True:
        try:
            stack.enter_context(files.locked(path, wait=False, mode=PRIVATE))
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)  # another process's lock: there is nothing to wait on


@contextlib.contextmanager
def create(spec: JobSpec) -> Iterator[Record]:
    """Takes the name and writes the first record, in one step; holds its lock during the block.

    Raises:
        LaunchError: if the name belongs to a run that has not ended, or the folder cannot be
            written.
    """
    path = Path(spec.record_dir)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = Record(dataclasses.replace(spec, run=uuid.uuid4().hex), created=now)
    new = path.with_name(f"{path.name}~new{os.getpid()}")
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.exists():
                record.handle["before"] = _put_aside(spec.name)
            shutil.rmtree(new, ignore_errors=True)
            for folder in (
                new,
                new / "logs",
            ):  # with `parents`, the mode applies only to the last one
                folder.mkdir(mode=0o700)
            stack.enter_context(files.locked(new / "lock", mode=PRIVATE))
            _write(new, record)
            new.rename(path)  # fails if another process was faster: that folder is not empty
        except OSError as error:
            raise LaunchError(
                f"{path}: cannot write the run's record ({error.strerror}); set LAUNCH_HOME to a "
                f"writable folder, or choose another --name"
            ) from None
        finally:
            shutil.rmtree(new, ignore_errors=True)
        yield record


def read(name: str) -> Record:
    """Reads a run's record.

    Raises:
        LaunchError: if there is no such run, or its record cannot be read.
    """
    check_exists(name)
    path = home() / name
    try:
        values = json.loads((path / "record.json").read_text(encoding="utf-8"))
        if values["version"] != _VERSION:
            raise ValueError(f"version {values['version']}, this launcher reads {_VERSION}")
        options = backends.load(values["spec"]["backend"]).Options
        return Record(
            spec=spec_lib.from_dict(values["spec"] | {"record_dir": str(path)}, options),
            created=values["created"],
            state=State(values["state"]),
            message=values["message"],
            exit_code=values["exit_code"],
            was_running=values["was_running"],
            restarts=Restarts(**values["restarts"]),
            handle=values["handle"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LaunchError(
            f"{path / 'record.json'}: cannot be read ({error}); fix it or move it away"
        ) from None


def check_exists(name: str) -> None:
    """Refuses a name that no run has.

    Raises:
        LaunchError: which names the runs that there are.
    """
    if re.fullmatch(r"[a-z][a-z0-9-]*(~\d+)?", name) and (home() / name / "record.json").exists():
        return
    known = names()
    near = difflib.get_close_matches(name, known, n=1)
    shown = f"did you mean {near[0]}?" if near else f"there are {', '.join(known[:_SHOWN])}"
    if len(known) > _SHOWN and not near:
        shown += f" and {len(known) - _SHOWN} more; `python -m launch list` lists all"
    raise LaunchError(f"{name!r}: no such run in {home()}; {shown if known else 'there are none'}")


def names() -> list[str]:
    """Returns the names of all runs, sorted."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(
            p.name for p in home().iterdir() if (p / "record.json").exists() and "~" not in p.name
        )
    return []


def _put_aside(name: str) -> str:
    """Frees the name of a run that has ended; its record and logs are kept as NAME~1, NAME~2, …

    Returns:
        The run's random number, which identifies what may be left of it elsewhere.
    """
    old = read(name)
    with old.locked() as free:
        old = read(name)  # the last holder of the lock may have written
        if not free or not old.state.is_final:
            raise LaunchError(
                f"--name={name}: taken by a run that is {old.state}; `python -m launch watch` or "
                f"`cancel` it, or choose another name"
            )
        if not old.was_running and not any(old.logs.iterdir()):
            shutil.rmtree(old.path)  # refused before anything was created: nothing to keep
            return old.spec.run
        number = 1
        while (aside := old.path.with_name(f"{name}~{number}")).exists():
            number += 1
        old.path.rename(aside)
    return old.spec.run


def _write(folder: Path, record: Record) -> None:
    values = {
        "version": _VERSION,
        "spec": spec_lib.to_dict(record.spec),
        "created": record.created,
        "state": record.state,
        "message": record.message,
        "exit_code": record.exit_code,
        "was_running": record.was_running,
        "restarts": dataclasses.asdict(record.restarts),
        "handle": record.handle,
    }
    write_private(folder / "record.json", json.dumps(values, indent=1) + "\n")


def write_private(path: Path, text: str) -> None:
    """Writes a file that only this account can read; readers see the old text or the new."""
    files.write_atomically(path, text, unique=True, mode=PRIVATE)
