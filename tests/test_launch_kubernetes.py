"""A run on Kubernetes, against a stand-in for kubectl: made, looked at, followed, and ended."""

import dataclasses
import itertools
import json
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from launch import cli, records
from launch.backends import kubernetes
from launch.backends.interface import Observation
from launch.errors import LaunchError
from launch.jobset import kubectl as kubectl_lib
from launch.jobset.manifest import manifest
from launch.jobset.pod import GRACE_S, INDEX
from launch.policy import State
from launch.records import Record
from launch.signals import Signals
from tests.jobset_specs import make_spec

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
    """A stand-in on PATH, no cluster: it keeps one JobSet and its pods in files, and does to them
    what the flags that the back end uses ask for."""

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


@pytest.fixture
def kubectl(tmp_path, monkeypatch) -> Kubectl:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path / "home"))
    return Kubectl(folder)


class Time(Signals):
    """Its clock goes forward only while nothing else is waited for."""

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


def make_job(**options: Any) -> tuple[kubernetes.Job, Record, Time]:
    with records.create(make_spec(record_dir=str(records.home() / "digits"), **options)) as record:
        time = Time()
    return kubernetes.Job(record, time), record, time


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


def test_it_is_made_once_and_in_one_cluster(kubectl):
    job, record, _ = make_job()
    job.create(0)
    jobset = kubectl.jobset
    assert jobset is not None
    del jobset["metadata"]["uid"]
    assert jobset == manifest(record.spec)
    kubectl.has(context="another-cluster")
    again = kubernetes.Job(records.read("digits"), Time())
    again.create(0)
    assert kubectl.verbs().count("create") == 1
    asked = [call for call in kubectl.calls if "config" not in call]
    where = ("--context=one-cluster", "--namespace=default")
    assert {tuple(call[:2]) for call in asked} == {where}
    assert records.read("digits").handle == {"context": "one-cluster"}


def test_an_answer_that_is_lost_is_no_failure(kubectl):
    job, _, _ = make_job()
    kubectl.has(fail={"create": {"done": True, "message": "error: the connection was reset"}})
    job.create(0)
    assert kubectl.jobset is not None


def test_a_cluster_that_refuses_it_is_quoted(kubectl):
    job, _, _ = make_job()
    log = 'E1124 18:32:08.912761   19553 memcache.go:265] "Unhandled Error"\n'
    kubectl.has(fail={"create": {"message": f"{log}Error (Forbidden): not\nallowed"}})
    with pytest.raises(LaunchError, match=r"^kubectl create: Error \(Forbidden\): not allowed$"):
        job.create(0)


def test_without_the_controller_it_says_what_to_install(kubectl):
    job, _, _ = make_job()
    kubectl.has(fail={"get": {"message": 'error: the server doesn\'t have a resource type "x"'}})
    with pytest.raises(LaunchError, match="install the JobSet controller"):
        job.create(0)


def test_without_kubectl_it_says_so(kubectl, monkeypatch, tmp_path):
    job, _, _ = make_job()
    monkeypatch.setenv("PATH", str(tmp_path))
    message = r"^kubectl: cannot be started .*install it"
    for act in (lambda: job.create(0), job.delete, lambda: list(job.logs(False))):
        with pytest.raises(LaunchError, match=message):
            act()
    seen = job.observe()
    assert seen.state is State.UNKNOWN
    assert re.search(message, seen.message)


def test_without_kubectl_the_status_of_other_runs_is_shown(kubectl, monkeypatch, tmp_path, capsys):
    make_job()
    other = dataclasses.replace(make_spec(record_dir=str(records.home() / "other")), name="other")
    with records.create(other) as record:
        record.set_state(State.FAILED, "as it was")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["status", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["state"] for row in rows} == {"digits": "unknown", "other": "failed"}


def test_somebody_elses_jobset_is_left_alone(kubectl):
    job, record, _ = make_job()
    theirs = manifest(dataclasses.replace(record.spec, run="theirs"))
    theirs["metadata"]["uid"] = "7"
    kubectl.has(jobset=theirs)
    with pytest.raises(LaunchError, match="has a JobSet of this name that was made elsewhere"):
        job.create(0)
    job.delete()
    assert job.observe().state is State.FAILED
    with pytest.raises(LaunchError, match="not there any more"):
        list(job.logs(False))
    assert kubectl.jobset == theirs
    assert set(kubectl.verbs()) == {"config", "get"}


def test_one_that_was_made_without_labels_is_somebody_elses(kubectl):
    job, _, _ = make_job()
    kubectl.has(jobset={"metadata": {"uid": "7"}, "spec": {}})
    with pytest.raises(LaunchError, match="made elsewhere"):
        job.create(0)


@pytest.mark.parametrize("ended", [True, False])
def test_an_earlier_run_of_the_name_is_taken_away_once_it_has_ended(kubectl, ended):
    """The one whose record gave its name back; nobody else's."""
    job, record, _ = make_job()
    old = manifest(dataclasses.replace(record.spec, run="before"))
    old["metadata"]["uid"] = "0"
    if ended:
        old |= {"status": {"conditions": [condition("Failed")]}}
    kubectl.has(jobset=old)
    with pytest.raises(LaunchError, match="was made elsewhere, or still runs"):
        job.create(0)
    record.handle["before"] = "before"
    if not ended:
        with pytest.raises(LaunchError, match="was made elsewhere, or still runs"):
            job.create(0)
        return
    job.create(0)
    assert kubectl.verbs().count("delete") == 1
    assert kubectl.jobset is not None
    assert kubectl.jobset["metadata"]["uid"] == "1"
    assert kubectl.jobset["metadata"]["labels"]["trainer-launch/run"] == record.spec.run


def test_a_delete_waits_until_all_is_gone(kubectl):
    job, _, _ = make_job()
    job.create(0)
    kubectl.has(looks=3)
    job.delete()
    assert kubectl.jobset is None
    [delete] = [call for call in kubectl.calls if "delete" in call]
    assert delete[3:] == [
        *("delete", "jobsets.jobset.x-k8s.io", "digits", "--ignore-not-found"),
        *("--cascade=foreground", "--wait=false"),
    ]
    job.delete()  # nothing is there: nothing to do
    assert kubectl.verbs().count("delete") == 1


def test_a_delete_says_when_pods_do_not_end(kubectl, monkeypatch):
    monkeypatch.setattr(kubernetes, "LOOK_S", 60.0)
    job, _, time = make_job()
    job.create(0)
    kubectl.has(looks=10_000)
    with pytest.raises(LaunchError, match="its pods have not ended yet; `python -m launch cancel"):
        job.delete()
    assert time.time >= GRACE_S


def test_a_signal_ends_the_wait_for_a_delete(kubectl):
    job, _, time = make_job()
    job.create(0)
    kubectl.has(looks=10_000)
    time.on_wait = lambda: time.received.append(2)
    with pytest.raises(LaunchError, match="is being deleted"):
        job.delete()
    assert time.time == kubernetes.LOOK_S


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "no GPU",
}
PULLING = {"name": "worker", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}
CREATING = {"name": "worker", "state": {"waiting": {"reason": "ContainerCreating"}}}
RUNNING = [make_pod(0, "Running"), make_pod(1, "Running")]


@pytest.mark.parametrize(
    ("status", "pods", "state", "message"),
    [
        ({}, [], State.QUEUED, "0 of 2 pods run"),
        ({"conditions": [condition("Suspended")]}, [], State.QUEUED, "suspended"),
        (
            {},
            [make_pod(0, "Running"), make_pod(1, "Pending", conditions=[UNSCHEDULABLE])],
            State.PROVISIONING,
            "worker 1: Unschedulable: no GPU",
        ),
        (
            {},
            [make_pod(0, "Pending", containerStatuses=[PULLING])],
            State.PROVISIONING,
            "worker 0: ImagePullBackOff: no",
        ),
        (
            {},
            [make_pod(0, "Pending", containerStatuses=[CREATING]), make_pod(1, "Running")],
            State.PROVISIONING,
            "1 of 2 pods run",
        ),
        ({}, RUNNING, State.RUNNING, ""),
        ({}, [make_pod(0, "Succeeded"), make_pod(1, "Running")], State.RUNNING, ""),
        (
            {"restarts": 2, "restartsCountTowardsMax": 1},
            RUNNING,
            State.RUNNING,
            "restart 2, 1 of 3 that count",
        ),
        (
            {},
            [*RUNNING, ended(1, 42, at=5)],
            State.PROVISIONING,
            "worker 1: ended with 42",
        ),
        ({}, [ended(1, 42, at=5), *(make_pod(r, "Running", at=9) for r in (0, 1))], "running", ""),
        (
            {},
            [make_pod(0, "Running"), ended(1, 137, at=5, reason="OOMKilled")],
            State.PROVISIONING,
            "worker 1: ended with 137 (OOMKilled: it took more than --memory)",
        ),
    ],
)
def test_what_a_look_shows(kubectl, status, pods, state, message):
    job, record, _ = make_job()
    kubectl.has(jobset=manifest(record.spec) | {"status": status}, pods=pods)
    seen = job.observe()
    assert (seen.state, seen.exit_code, seen.message) == (state, None, message)


def test_a_queue_is_named(kubectl):
    job, record, _ = make_job(queue="gpus")
    jobset = manifest(record.spec)
    jobset["spec"]["suspend"] = True
    kubectl.has(jobset=jobset)
    assert job.observe() == Observation(State.QUEUED, message="waits in queue gpus")


def test_a_run_that_is_done(kubectl):
    job, record, _ = make_job()
    status = {"conditions": [condition("Completed")]}
    kubectl.has(jobset=manifest(record.spec) | {"status": status})
    assert job.observe() == Observation(State.SUCCEEDED, exit_code=0)


DISRUPTED = [condition("DisruptionTarget")]


@pytest.mark.parametrize(
    ("pods", "code", "message"),
    [
        ([], None, "FailJobSetPolicyAction: failed"),
        ([ended(1, 2, at=3)], 2, "worker 1 ended with 2 (error: worker 1); Fail"),
        # The first, not the lowest rank.
        ([ended(0, 1, at=5), ended(1, 3, at=4)], 3, "worker 1 ended with 3"),
        # Who was brought down is not to blame, whatever the nodes' clocks say.
        ([ended(0, 200, at=3), ended(1, 137, at=4)], 137, "worker 1 ended with 137 (killed: out"),
        ([ended(0, 200, at=3), ended(1, 200, at=4)], 200, "worker 0 ended with 200"),
        (
            [ended(0, 137, at=3, reason="OOMKilled"), ended(1, 200, at=3)],
            137,
            "worker 0 ended with 137 (OOMKilled: it took more than --memory)",
        ),
        # Nor what was ignored, long before.
        ([ended(0, 42, at=1), ended(0, 2, at=9)], 2, "worker 0 ended with 2"),
        ([ended(0, 137, at=1, conditions=DISRUPTED), ended(1, 1, at=9)], 1, "worker 1 ended with"),
        (
            [make_pod(0, "Failed", reason="Evicted", message="disk is full")],
            None,
            "worker 0 Evicted: disk is full; Fail",
        ),
    ],
)
def test_who_failed_first(kubectl, pods, code, message):
    job, record, _ = make_job()
    failed = condition("Failed", reason="FailJobSetPolicyAction", message="failed")
    status = {"conditions": [failed]}
    kubectl.has(jobset=manifest(record.spec) | {"status": status}, pods=pods)
    seen = job.observe()
    assert (seen.state, seen.exit_code) == (State.FAILED, code)
    assert seen.message.startswith(message)


def test_one_that_was_deleted_is_not_waited_for(kubectl):
    job, record, _ = make_job()
    job.create(0)
    jobset = kubectl.jobset
    assert jobset is not None
    jobset["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    kubectl.has(jobset=jobset, looks=0)
    assert job.observe().state is State.UNKNOWN
    seen = kubernetes.Job(record, Time()).observe()
    assert (seen.state, seen.gone) == (State.FAILED, False)
    assert "not there any more" in seen.message


@pytest.mark.parametrize("call", ["get jobsets.jobset.x-k8s.io", "get pods"])
def test_no_answer_is_no_end(kubectl, monkeypatch, call):
    monkeypatch.setattr(kubectl_lib, "CALL_S", 1.0)
    job, record, _ = make_job()
    kubectl.has(jobset=manifest(record.spec), fail={call: {"hang": True}})
    seen = job.observe()
    assert seen.state is State.UNKNOWN
    assert seen.message.startswith("kubectl get: no answer within 1 s")


def test_an_error_is_no_end(kubectl):
    job, _, _ = make_job()
    kubectl.has(fail={"get": {"message": "Unable to connect\nto the server"}})
    message = "kubectl get: Unable to connect to the server"
    assert job.observe() == Observation(State.UNKNOWN, message=message)


def test_what_is_no_json_is_no_end(kubectl, tmp_path):
    job, _, _ = make_job()
    (tmp_path / "bin" / "kubectl").write_text("#!/bin/sh\necho please log in\n")
    assert job.observe().message == "kubectl get: no JSON: please log in"


def test_logs_are_told_apart_by_rank(kubectl):
    job, record, _ = make_job()
    pods = [*reversed(RUNNING), make_pod(2, "Pending")]
    kubectl.has(jobset=manifest(record.spec), pods=pods)
    kubectl.logs("digits-worker-0-0-0", "one\ntwo\r\n")
    kubectl.logs("digits-worker-0-1-0", "three\nhalf")
    assert list(job.logs(False)) == ["[0] one", "[0] two", "[1] three", "[1] half"]


def test_logs_of_pods_that_come_later_are_followed(kubectl):
    job, record, time = make_job()
    jobset = manifest(record.spec)
    kubectl.has(jobset=jobset, pods=[make_pod(0, "Running")])
    kubectl.logs("digits-worker-0-0-0", "first start\n")
    kubectl.logs("digits-worker-0-0-9", "second start\n")
    kubectl.logs("digits-worker-0-1-9", "second start\n")
    steps = itertools.count()

    def later() -> None:
        if next(steps) == 0:
            kubectl.has(pods=[make_pod(0, "Running", at=9), make_pod(1, "Running", at=9)])
        elif time.now() > 3 * job.poll_s:
            kubectl.has(jobset=jobset | {"status": {"conditions": [condition("Completed")]}})

    time.on_wait = later
    lines = list(job.logs(True))
    assert lines[0] == "[0] first start"
    assert sorted(lines[1:]) == ["[0] second start", "[1] second start"]
    assert all("--follow" in call for call in kubectl.calls if "logs" in call)


def test_a_signal_ends_following(kubectl):
    job, record, time = make_job()
    kubectl.has(jobset=manifest(record.spec))
    time.on_wait = lambda: time.received.append(2)
    assert list(job.logs(True)) == []


def test_from_submit_to_the_end(kubectl, tmp_path, capsys, monkeypatch):
    """The whole command line, on the stand-in."""
    monkeypatch.setattr(kubernetes, "LOOK_S", 0.01)
    command = ["submit", "--backend=kubernetes", "--name=digits", f"--folder={tmp_path}"]
    assert cli.main([*command, "--volume-claim=runs", "--", "--strategy=mirrored"]) == 0
    jobset = kubectl.jobset
    assert jobset is not None
    kubectl.has(pods=[make_pod(0, "Running")])
    assert cli.main(["status", "digits", "--json"]) == 0
    assert '"state": "running"' in capsys.readouterr().out
    failed = condition("Failed", reason="FailJobSetPolicyAction", message="failed")
    kubectl.has(jobset=jobset | {"status": {"conditions": [failed]}}, pods=[ended(0, 43, at=1)])
    assert cli.main(["watch", "digits"]) == 43
    assert records.read("digits").state is State.FAILED
    assert cli.main([*command, "--volume-claim=runs", "--", "--strategy=mirrored"]) == 0
    assert cli.main(["cancel", "digits"]) == 0
    assert records.read("digits").state is State.CANCELLED
    assert kubectl.jobset is None
