"""The history of a run: each start and end of a process, in `history.jsonl`. No TensorFlow.

Only the chief writes. A start without an end was killed, or its machine went down.
"""

import contextlib
import datetime
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import (
    EXIT_DONE,
    DivergedError,
    GroupError,
    PreemptedError,
    UserError,
    exit_code_of,
)
from trainer.run.environment import environment
from trainer.run.folder import RunFolder

FILE = "history.jsonl"
# Variables whose value may differ between two processes of one run without changing its result.
_FREE_VARIABLES = {"TF_CONFIG", "TF_CPP_MIN_LOG_LEVEL", "TFDS_DATA_DIR"}

# How a run ends, in words. A GroupError is a UserError, too.
_ENDS = {
    PreemptedError: "stopped by a signal",
    DivergedError: "diverged",
    GroupError: "the group broke",
    UserError: "error",
    KeyboardInterrupt: "Ctrl-C",
}

Event = Mapping[str, Any]


class History:
    """The history of the run in a folder."""

    def __init__(self, folder: RunFolder):
        self._path = folder.path / FILE
        self._enabled = folder.is_chief

    def add(self, kind: str, values: Event) -> None:
        """Appends an event with the present time. It is on the disk when this returns.

        If it cannot be written, there is a warning, and nothing more is: the run matters more.
        """
        if not self._enabled:
            return
        try:
            self._append(kind, values)
        except OSError as error:
            self._enabled = False
            print(f"warning: {self._path}: cannot be written ({error.strerror})", file=sys.stderr)

    def _append(self, kind: str, values: Event) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = json.dumps({"kind": kind, "time": now, **values})
        with self._path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else f"\n{line}"  # a kill during a write
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def add_devices(self, strategy: Any) -> None:
        """Appends where the run computes: a `tf.distribute.Strategy` and its devices."""
        devices = strategy.extended.worker_devices
        values = {
            "strategy": type(strategy).__name__,
            "replicas": strategy.num_replicas_in_sync,
            "devices": sorted({device.rpartition("device:")[2] for device in devices}),
        }
        self.add("devices", values)

    def changes(self) -> list[str]:
        """Returns a line for each version, commit, variable or number of replicas that is another
        than when the run began. None of them is a reason to refuse, but each may change bits."""
        lines = []
        for kind in ("start", "devices"):
            events = [event for event in read_history(self._path.parent) if event["kind"] == kind]
            if len(events) > 1:
                lines += _differences(_shown(events[0]), _shown(events[-1]))
        return lines


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Returns the events of a run, oldest first; lines that a kill has cut are left out."""
    try:
        text = (folder / FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    events = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and {"kind", "time"} <= event.keys():
                events.append(event)
    return events


@contextlib.contextmanager
def recorded(folder: RunFolder, config_file: str) -> Iterator[History]:
    """Records the start of this process, and its end with the reason, in the run's history.

    If it ends with an error before a first step is done, nothing of the run is left, and what was
    there before stays.

    Args:
        config_file: the path of the config's file; its text is recorded.
    """
    history = History(folder)
    try:
        if folder.is_chief:  # the others need not ask git
            config = {"config_file": config_file, **_text_of(config_file)}
            history.add("start", environment() | config)
        yield history
    except BaseException as error:
        history.add("end", _end(error))
        if isinstance(error, UserError | KeyboardInterrupt) and not folder.has_begun:
            folder.remove()
        raise
    history.add("end", {"reason": "done", "exit_code": EXIT_DONE})


def _text_of(path: str) -> dict[str, str]:
    try:
        return {"config_text": Path(path).read_text(encoding="utf-8")}
    except OSError:
        return {}


def _end(error: BaseException) -> dict[str, Any]:
    what = next((what for kind, what in _ENDS.items() if isinstance(error, kind)), None)
    what = what or type(error).__name__
    text = " ".join(str(error).split())[:500]
    return {"reason": f"{what}: {text}" if text else what, "exit_code": exit_code_of(error)}


def _shown(event: Event) -> dict[str, str]:
    """Returns what counts of an event, by its name."""
    found = {f"version of {name}": text for name, text in event.get("versions", {}).items()}
    variables = event.get("variables", {})
    found |= {name: text for name, text in variables.items() if name not in _FREE_VARIABLES}
    for name in ("commit", "strategy", "replicas"):
        if event.get(name):
            found[name] = str(event[name])
    return found


def _differences(first: Mapping[str, str], last: Mapping[str, str]) -> list[str]:
    return [
        f"{name}: {last.get(name, 'none')} now, {first.get(name, 'none')} when the run began"
        for name in sorted(first.keys() | last.keys())
        if first.get(name) != last.get(name)
    ]
