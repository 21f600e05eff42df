"""What the launcher knows of its runs: a folder each, written before anything is made elsewhere.

HOME/NAME/record.json  cancel  lock  logs/    HOME: $LAUNCH_HOME, or ~/.local/state/trainer-launch

Only who holds the lock writes record.json; whoever cancels makes the file `cancel`.
"""

import contextlib
import dataclasses
import datetime
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
PRIVATE = 0o600  # a file of this account alone


def home() -> Path:
    """The folder of all records: on storage that all nodes see, where Slurm is used."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(os.environ.get("LAUNCH_HOME") or f"{state}/trainer-launch").resolve()


@dataclasses.dataclass
class Record:
    """What is known of one run.

    Attributes:
        created: when it was submitted, ISO 8601 in UTC.
        state: as last seen, with one line that says why.
        exit_code: the trainer's, once the run has ended and where anybody saw it.
        was_running: whether it ever did: a failure before that is the config's or a quota's.
        handle: what the back end needs to find again what it made.
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
        """Replaces record.json: who reads meanwhile, or after a crash, has the old or the new."""
        _write(self.path, self)

    def set_state(self, state: State, message: str = "", exit_code: int | None = None) -> None:
        self.state, self.message, self.exit_code = state, redacted(message), exit_code
        self.save()

    @property
    def is_cancelled(self) -> bool:
        return (self.path / "cancel").exists()

    def cancel(self) -> None:
        """Asks for the end of the run, of whoever watches it now or later."""
        (self.path / "cancel").touch(mode=PRIVATE)

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Whether this process may act on the run; the kernel lets go when it dies."""
        with contextlib.ExitStack() as stack:
            yield _lock(stack, self.path / "lock")

    @property
    def is_watched(self) -> bool:
        path = self.path / "lock"
        try:
            with files.locked(path, wait=False, shared=True, mode=PRIVATE):
                return False  # a shared lock: two who ask do not see each other
        except BlockingIOError:
            return True
        except OSError:  # a home that can only be read
            return False


def _lock(stack: contextlib.ExitStack, path: Path) -> bool:
    """Tries for a moment: who only asks whether it is taken has it for no longer."""
    until = time.monotonic() + 0.5
    while True:
        try:
            stack.enter_context(files.locked(path, wait=False, mode=PRIVATE))
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)  # of another process: there is nothing to wait on


@contextlib.contextmanager
def create(spec: JobSpec) -> Iterator[Record]:
    """Takes the name and writes the first record, in one step; locked until the end of the block.

    Raises:
        LaunchError: where the name belongs to a run that has not ended, or the folder cannot be
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
            for folder in (new, new / "logs"):  # with `parents`, only the last one has the mode
                folder.mkdir(mode=0o700)
            stack.enter_context(files.locked(new / "lock", mode=PRIVATE))
            _write(new, record)
            new.rename(path)  # fails where somebody else was faster: a folder that is not empty
        except OSError as error:
            raise LaunchError(
                f"{path}: the run's record cannot be written ({error.strerror}); set LAUNCH_HOME "
                f"to a folder that can, or choose another --name"
            ) from None
        finally:
            shutil.rmtree(new, ignore_errors=True)
        yield record


def read(name: str) -> Record:
    """Raises LaunchError where there is no such run, or its record cannot be read."""
    if not re.fullmatch(r"[a-z][a-z0-9-]*(~\d+)?", name):
        raise LaunchError(f"{name!r}: is no name of a run; `python -m launch list` names them all")
    path = home() / name
    try:
        values = json.loads((path / "record.json").read_text(encoding="utf-8"))
        if values["version"] != _VERSION:
            raise ValueError(f"of version {values['version']}, this is {_VERSION}")
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
    except (FileNotFoundError, NotADirectoryError):
        raise LaunchError(
            f"{name}: there is no such run in {home()}; `python -m launch list` names them all"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LaunchError(
            f"{path / 'record.json'}: cannot be read ({error}); mend it, or move it away"
        ) from None


def names() -> list[str]:
    """Of all runs, sorted."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(
            p.name for p in home().iterdir() if (p / "record.json").exists() and "~" not in p.name
        )
    return []


def _put_aside(name: str) -> str:
    """A run that has ended gives its name back; its record and logs are kept beside it.

    Returns:
        its number, by which what is left of it elsewhere is known.
    """
    old = read(name)
    with old.locked() as free:
        old = read(name)  # who had the lock may have written
        if not free or not old.state.is_final:
            raise LaunchError(
                f"--name={name}: belongs to a run that is {old.state}; `python -m launch watch` or "
                f"`cancel` it, or choose another name"
            )
        if not old.was_running and not any(old.logs.iterdir()):
            shutil.rmtree(old.path)  # refused before anything was made: there is nothing to keep
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
    """A file of this account alone, old or new to whoever reads it."""
    files.write_atomically(path, text, unique=True, mode=PRIVATE)
