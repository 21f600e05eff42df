"""Looks at the cluster, on a stand-in for kubectl."""

import pytest

from launch.interface import Observation
from launch.kubernetes import backend
from launch.kubernetes import kubectl as kubectl_lib
from launch.kubernetes.manifest import manifest
from launch.policy import State
from tests.launch.kubernetes.stand_in import RUNNING, Time, condition, ended, make_job, make_pod

UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "no GPU",
}
PULLING = {"name": "worker", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}
CREATING = {"name": "worker", "state": {"waiting": {"reason": "ContainerCreating"}}}


@pytest.mark.parametrize(
    ("status", "pods", "state", "message"),
    [
        ({}, [], State.QUEUED, "0 of 2 pods running"),
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
            "1 of 2 pods running",
        ),
        ({}, RUNNING, State.RUNNING, ""),
        ({}, [make_pod(0, "Succeeded"), make_pod(1, "Running")], State.RUNNING, ""),
        (
            {"restarts": 2, "restartsCountTowardsMax": 1},
            RUNNING,
            State.RUNNING,
            "restart 2, 1 of 3 charged",
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
            "worker 1: ended with 137 (OOMKilled: it exceeded --memory)",
        ),
    ],
)
def test_a_look_shows_state_and_message(kubectl, status, pods, state, message):
    job, record, _ = make_job()
    kubectl.has(jobset=manifest(record.spec) | {"status": status}, pods=pods)
    seen = job.observe()
    assert (seen.state, seen.exit_code, seen.message) == (state, None, message)


def test_a_queue_is_named(kubectl):
    job, record, _ = make_job(queue="gpus")
    jobset = manifest(record.spec)
    jobset["spec"]["suspend"] = True
    kubectl.has(jobset=jobset)
    assert job.observe() == Observation(State.QUEUED, message="waiting in queue gpus")


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
        # A worker that another one brought down is not to blame, whatever the nodes' clocks show.
        ([ended(0, 200, at=3), ended(1, 137, at=4)], 137, "worker 1 ended with 137 (killed: out"),
        ([ended(0, 200, at=3), ended(1, 200, at=4)], 200, "worker 0 ended with 200"),
        (
            [ended(0, 137, at=3, reason="OOMKilled"), ended(1, 200, at=3)],
            137,
            "worker 0 ended with 137 (OOMKilled: it exceeded --memory)",
        ),
        # An ignored end long before is not, either.
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


def test_a_deleted_jobset_is_not_waited_for(kubectl):
    job, record, _ = make_job()
    job.create(0)
    jobset = kubectl.jobset
    assert jobset is not None
    jobset["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    kubectl.has(jobset=jobset, looks=0)
    assert job.observe().state is State.UNKNOWN
    seen = backend.Job(record, Time()).observe()
    assert (seen.state, seen.gone) == (State.FAILED, False)
    assert "no longer exist" in seen.message


@pytest.mark.parametrize("call", ["get jobsets.jobset.x-k8s.io", "get pods"])
def test_no_answer_is_not_an_end(kubectl, monkeypatch, call):
    monkeypatch.setattr(kubectl_lib, "CALL_S", 1.0)
    job, record, _ = make_job()
    kubectl.has(jobset=manifest(record.spec), fail={call: {"hang": True}})
    seen = job.observe()
    assert seen.state is State.UNKNOWN
    assert seen.message.startswith("kubectl get: no answer within 1 s")


def test_an_error_is_not_an_end(kubectl):
    job, _, _ = make_job()
    kubectl.has(fail={"get": {"message": "Unable to connect\nto the server"}})
    message = "kubectl get: Unable to connect to the server"
    assert job.observe() == Observation(State.UNKNOWN, message=message)


def test_invalid_json_is_not_an_end(kubectl, tmp_path):
    job, _, _ = make_job()
    (tmp_path / "bin" / "kubectl").write_text("#!/bin/sh\necho please log in\n")
    assert job.observe().message == "kubectl get: not JSON: please log in"
