"""A run on Kubernetes, on a stand-in for kubectl: created, followed, and ended."""

import dataclasses
import itertools
import json
import re

import pytest

from launch import cli, records
from launch.errors import LaunchError
from launch.kubernetes import backend
from launch.kubernetes.manifest import manifest
from launch.kubernetes.pod import GRACE_S
from launch.policy import State
from tests.launch.kubernetes.specs import make_spec
from tests.launch.kubernetes.stand_in import RUNNING, Time, condition, ended, make_job, make_pod


def test_a_run_is_created_once_and_in_one_cluster(kubectl):
    job, record, _ = make_job()
    job.create(0)
    jobset = kubectl.jobset
    assert jobset is not None
    del jobset["metadata"]["uid"]
    assert jobset == manifest(record.spec)
    kubectl.has(context="another-cluster")
    again = backend.Job(records.read("digits"), Time())
    again.create(0)
    assert kubectl.verbs().count("create") == 1
    asked = [call for call in kubectl.calls if "config" not in call]
    where = ("--context=one-cluster", "--namespace=default")
    assert {tuple(call[:2]) for call in asked} == {where}
    assert records.read("digits").handle == {"context": "one-cluster"}


def test_a_lost_answer_is_not_a_failure(kubectl):
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


def test_without_the_controller_the_error_names_what_to_install(kubectl):
    job, _, _ = make_job()
    kubectl.has(fail={"get": {"message": 'error: the server doesn\'t have a resource type "x"'}})
    with pytest.raises(LaunchError, match="install the JobSet controller"):
        job.create(0)


def test_without_kubectl_the_error_names_it(kubectl, monkeypatch, tmp_path):
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
    with pytest.raises(LaunchError, match="has a JobSet of this name that was created elsewhere"):
        job.create(0)
    job.delete()
    assert job.observe().state is State.FAILED
    with pytest.raises(LaunchError, match="no longer exist"):
        list(job.logs(False))
    assert kubectl.jobset == theirs
    assert set(kubectl.verbs()) == {"config", "get"}


def test_a_jobset_without_labels_is_somebody_elses(kubectl):
    job, _, _ = make_job()
    kubectl.has(jobset={"metadata": {"uid": "7"}, "spec": {}})
    with pytest.raises(LaunchError, match="created elsewhere"):
        job.create(0)


@pytest.mark.parametrize("ended", [True, False])
def test_an_earlier_run_of_the_name_is_deleted_once_it_has_ended(kubectl, ended):
    """Only the run whose record freed the name."""
    job, record, _ = make_job()
    old = manifest(dataclasses.replace(record.spec, run="before"))
    old["metadata"]["uid"] = "0"
    if ended:
        old |= {"status": {"conditions": [condition("Failed")]}}
    kubectl.has(jobset=old)
    with pytest.raises(LaunchError, match="was created elsewhere or still runs"):
        job.create(0)
    record.handle["before"] = "before"
    if not ended:
        with pytest.raises(LaunchError, match="was created elsewhere or still runs"):
            job.create(0)
        return
    job.create(0)
    assert kubectl.verbs().count("delete") == 1
    assert kubectl.jobset is not None
    assert kubectl.jobset["metadata"]["uid"] == "1"
    assert kubectl.jobset["metadata"]["labels"]["trainer-launch/run"] == record.spec.run


def test_a_delete_waits_until_everything_is_gone(kubectl):
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
    job.delete()  # nothing left to delete
    assert kubectl.verbs().count("delete") == 1


def test_a_delete_reports_pods_that_do_not_end(kubectl, monkeypatch):
    monkeypatch.setattr(backend, "LOOK_S", 60.0)
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
    assert time.time == backend.LOOK_S


def test_log_lines_start_with_the_rank(kubectl):
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
    monkeypatch.setattr(backend, "LOOK_S", 0.01)
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
