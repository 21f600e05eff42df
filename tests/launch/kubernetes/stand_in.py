"""A stand-in for kubectl and its cluster, with JobSets and pods."""

import json
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch import records
from launch.kubernetes import backend
from launch.kubernetes.pod import INDEX
from launch.records import Record
from launch.signals import Signals
from tests.launch.kubernetes.specs import make_spec

KUBECTL = """\
import json, os, sys, time
from pathlib import Path

here = Path(__file__).parent
read = lambda name, default: json.loads(p.read_text()) if (p := here / name).exists() else default
write = lambda name, value: (here / name).write_text(json.dumps(value))
with open(here / "calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
args = [a for a in sys.argv[1:] if not a.startswith(("--context", "--namespace", "--request"))]
verb, jobset = args[0], read("jobset", None)
fail = read("fail", {}).get(" ".join(args[:2]), read("fail", {}).get(verb))
if fail and fail.get("hang"):
    time.sleep(600)  # until it is killed
if fail and not fail.get("done"):
    sys.exit(fail["message"])
if verb == "config":
    print(read("context", "one-cluster"))
elif verb == "create":
    import yaml
    if jobset:
        sys.exit('Error from server (AlreadyExists): jobsets "digits" already exists')
    value = yaml.safe_load(sys.stdin)
    value["metadata"]["uid"] = "1"
    write("jobset", value)
elif verb == "delete" and jobset:
    jobset["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    write("jobset", jobset)
elif verb == "get" and args[1] == "pods":
    print(json.dumps({"items": read("pods", [])}))
elif verb == "get" and jobset:
    print(json.dumps(jobset))
    if jobset["metadata"].get("deletionTimestamp"):
        looks = read("looks", 1)
        write("looks", looks - 1)
        if looks <= 0:
            (here / "jobset").unlink()
elif verb == "logs":
    sys.stdout.write((here / f"log-{args[1]}").read_text())
if fail:
    sys.exit(fail["message"])
"""


class Kubectl:
    """A stand-in on PATH. It keeps one JobSet and its pods in files, and supports the flags that
    the back end uses."""

    def __init__(self, folder: Path):
        self._folder = folder
        (folder / "stand_in.py").write_text(KUBECTL)
        script = folder / "kubectl"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {folder}/stand_in.py "$@"\n')
        script.chmod(0o755)

    def has(self, **files: Any) -> None:
        for name, value in files.items():
            (self._folder / name).write_text(json.dumps(value))

    def logs(self, name: str, text: str) -> None:
        (self._folder / f"log-{name}").write_text(text)

    @property
    def jobset(self) -> dict[str, Any] | None:
        path = self._folder / "jobset"
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def calls(self) -> list[list[str]]:
        path = self._folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def verbs(self) -> list[str]:
        flags = ("--context", "--namespace", "--request")
        return [next(a for a in call if not a.startswith(flags)) for call in self.calls]


class Time(Signals):
    """A clock that advances only if nothing but time is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0
        self.on_wait: Callable[[], None] = lambda: None

    def wait(self, seconds: float, others: Sequence[int] = ()) -> list[int]:
        if others:
            return select.select(others, [], [])[0]
        self.time += seconds
        self.on_wait()
        return []

    def now(self) -> float:
        return self.time


def make_job(**options: Any) -> tuple[backend.Job, Record, Time]:
    with records.create(make_spec(record_dir=str(records.home() / "digits"), **options)) as record:
        time = Time()
    return backend.Job(record, time), record, time


def make_pod(rank: int, phase: str, at: int = 0, **status: Any) -> dict[str, Any]:
    metadata = {
        "name": f"digits-worker-0-{rank}-{at}",
        "uid": f"{rank}-{at}",
        "creationTimestamp": f"2026-11-24T12:00:{at:02}Z",
        "annotations": {INDEX: str(rank)},
    }
    return {"metadata": metadata, "status": {"phase": phase, **status}}


def ended(rank: int, code: int, at: int, reason: str = "Error", **status: Any) -> dict[str, Any]:
    end = {"exitCode": code, "reason": reason, "finishedAt": f"2026-11-24T12:01:{at:02}Z"}
    end["message"] = f"step 1\nerror: worker {rank}\n"
    sidecar = {"name": "gcsfuse", "state": {"terminated": {"exitCode": 9}}}
    own = {"name": "worker", "state": {"terminated": end}}
    return make_pod(rank, "Failed", at, containerStatuses=[sidecar, own], **status)


def condition(kind: str, **fields: str) -> dict[str, str]:
    return {"type": kind, "status": "True", **fields}


RUNNING = [make_pod(0, "Running"), make_pod(1, "Running")]
