"""The end of a run on Cloud TPU VMs: nothing is left, whatever happens."""

import shutil
import signal

import pytest

from launch import cli as cli_lib
from launch.policy import State
from launch.tpu import backend, rest
from tests.launch.tpu.fake_api import Fault
from tests.launch.tpu.runs import FakeSignals, record, submit, watch


@pytest.mark.parametrize("steps", [("CREATING",), ("PROVISIONING",), ("ACTIVE",), ("SUSPENDED",)])
def test_cancel_leaves_nothing(cloud, steps):
    cloud.plans = [steps]
    submit()
    backend.Job(record(), FakeSignals()).observe()
    assert cli_lib.main(["cancel", "run"]) == 0
    assert record().state is State.CANCELLED
    assert watch() == 130


def test_cancel_between_two_starts(cloud):
    """While the watch waits before it creates the next one."""
    cloud.plans = [("ACTIVE", "SUSPENDED")]
    submit()
    signals = FakeSignals()

    def cancel(waits: int) -> None:
        if record().state is State.PREEMPTED and not cloud.queued:
            record().cancel()

    signals.then = cancel
    assert watch(signals=signals) == 130
    assert cloud.created == ["run"]


def test_cancel_finds_nodes_whose_queued_resource_is_gone(cloud):
    cloud.plans = [("ACTIVE",)]
    submit()
    backend.Job(record(), FakeSignals()).observe()
    del cloud.queued["run"]
    assert list(cloud.nodes) == ["run"]
    cli_lib.main(["cancel", "run"])


def test_a_signal_ends_the_watch_and_not_the_run(cloud):
    cloud.plans = [("ACTIVE",)]
    submit()
    signals = FakeSignals()
    signals.then = lambda waits: signals.received.append(signal.SIGINT)
    assert watch(signals=signals) == 130
    assert list(cloud.queued) == ["run"]
    cli_lib.main(["cancel", "run"])


def test_leftovers_that_cannot_be_deleted_are_reported(cloud, capsys, monkeypatch):
    monkeypatch.setattr(backend, "_LONGEST_DELETE_S", 60.0)
    cloud.plans = [("ACTIVE",)]
    submit()
    cloud.faults = [Fault("DELETE /v2", 400, "is busy", times=-1)]
    assert cli_lib.main(["cancel", "run"]) == 2
    assert "is busy" in capsys.readouterr().err
    cloud.faults = []
    assert cli_lib.main(["cancel", "run"]) == 0


class Crash(BaseException):
    """The launcher's process ends at once."""


def _crash_after(monkeypatch, number: int) -> list[int]:
    """At the end of that many requests, before the launcher has seen the answer."""
    count = [0]
    request = rest.Api.request

    def crashing(self, *args, **kwargs):
        answer = request(self, *args, **kwargs)
        count[0] += 1
        if count[0] == number:
            raise Crash
        return answer

    monkeypatch.setattr(rest.Api, "request", crashing)
    return count


def _run_with_a_preemption(cloud) -> None:
    cloud.plans = [("PROVISIONING", "ACTIVE", "SUSPENDED"), ("ACTIVE", "done")]
    submit()
    watch()


@pytest.mark.parametrize("then", ["watch", "cancel"])
def test_the_launcher_may_die_at_any_moment(cloud, monkeypatch, then):
    moment = 0
    while True:
        moment += 1
        with monkeypatch.context() as patch:
            patch.setattr(cli_lib, "Signals", FakeSignals)
            _crash_after(patch, moment)
            try:
                _run_with_a_preemption(cloud)
                break
            except Crash:
                pass
        if then == "watch":
            assert watch() == 0, moment
        else:
            cli_lib.main(["cancel", "run"])
            assert record().state.is_final, moment
        assert (cloud.queued, cloud.nodes, cloud.overlaps) == ({}, {}, []), moment
        shutil.rmtree(cloud.objects / "runs", ignore_errors=True)
    assert moment > 30  # as many requests as a run with one preemption has
