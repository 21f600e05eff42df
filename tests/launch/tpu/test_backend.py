"""Runs on Cloud TPU VMs, and their failures, on a stand-in for Google's servers."""

import signal
import tarfile

import pytest

from launch import cli as cli_lib
from launch.policy import State
from launch.tpu import archive, backend, rest
from tests.launch.tpu.fake_api import Fault
from tests.launch.tpu.runs import FakeSignals, record, submit, watch


def test_a_run_to_its_end(cloud, capsys):
    waiting = "WAITING_FOR_RESOURCES"
    cloud.plans = [(waiting, waiting, "PROVISIONING", "ACTIVE", "ACTIVE", "done")]
    assert submit() == 0
    assert list(cloud.queued) == ["run"]
    assert cli_lib.main(["status", "run"]) == 0
    assert cli_lib.main(["watch", "run"]) == 0
    said = capsys.readouterr().out
    for word in ("queued: the queued resource is WAITING", "provisioning", "running: node READY"):
        assert word in said
    assert (record().state, record().exit_code) == (State.SUCCEEDED, 0)
    assert record().message == "best accuracy 0.9"
    assert cli_lib.main(["status", "run"]) == 0  # sends no more requests
    assert any(line.startswith("DELETE") and "force=true" in line for line in cloud.requests)


@pytest.mark.parametrize(
    "first",
    [
        ("PROVISIONING", "SUSPENDING", "SUSPENDED"),
        ("ACTIVE", "SUSPENDED"),
        ("ACTIVE", "ACTIVE", "node:PREEMPTED"),
        ("ACTIVE", "ACTIVE", "node:TERMINATED"),
        ("ACTIVE", "vanish"),
        ("ACTIVE", "node-vanish"),
        ("ACTIVE", "FAILED:taken away"),
    ],
    ids=" ".join,
)
def test_a_preempted_run_resumes(cloud, first):
    cloud.plans = [first, ("PROVISIONING", "ACTIVE", "ACTIVE", "done")]
    submit()
    assert watch() == 0
    assert cloud.created == ["run", "run-r1"]
    assert record().restarts.attempt == 1
    assert record().restarts.charged == 0


def test_a_slice_that_is_always_taken_away_ends(cloud):
    cloud.plans = [("PROVISIONING", "SUSPENDED")] * 20
    submit()
    assert watch() == 1
    assert "without a new checkpoint" in record().message
    assert len(cloud.created) == 5


def test_checkpoints_are_progress(cloud):
    folder = "runs/run/checkpoints/checkpoint"
    cloud.plans = [("ACTIVE", f"object:{folder}={n}", "SUSPENDED") for n in range(9)]
    submit()
    assert watch() == 0
    assert len(cloud.created) == 10


def test_the_users_error_ends_it(cloud, capsys):
    cloud.plans = [("ACTIVE", "failed:2")]
    submit()
    assert watch() == 2
    assert cloud.created == ["run"]
    assert "the trainer ended with 2" in record().message


def test_a_killed_trainer_is_charged(cloud):
    cloud.plans = [("ACTIVE", "failed:137")] * 9
    for number in range(9):  # so that it does not end for lack of progress
        cloud.object(f"runs/run/checkpoints/{number}")
    submit("--max-restarts=2")
    assert watch() == 137
    assert cloud.created == ["run", "run-r1", "run-r2"]
    assert record().restarts.charged == 2


def test_a_setup_that_failed_is_tried_again(cloud):
    cloud.plans = [("ACTIVE", "failed:201"), ("ACTIVE", "done")]
    submit()
    assert watch() == 0
    assert record().restarts.charged == 1


def test_a_quota_ends_it(cloud):
    cloud.plans = [("CREATING", "FAILED:Quota exceeded for v5e")]
    submit()
    assert watch() == 1
    assert cloud.created == ["run"]
    assert record().message == "Quota exceeded for v5e"


def test_a_request_that_is_refused_later_ends_it(cloud):
    cloud.plans = [("refused:no such accelerator in z",)]
    submit()
    assert watch() == 1
    assert "no such accelerator" in record().message


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("POST /v2", 403, "Permission denied"), "roles/tpu.admin"),
        (
            Fault("POST /v2", 403, "off", details=[{"reason": "SERVICE_DISABLED"}]),
            "gcloud services enable",
        ),
        (Fault("POST /v2", 401, "Request had invalid authentication"), "401"),
        (Fault("POST /v2", 400, "Invalid runtimeVersion"), "Invalid runtimeVersion"),
        (
            Fault(
                "POST /v2",
                429,
                "Quota limit 'TPUV5sPerProject' has been exceeded. Limit: 0",
                details=[{"@type": "type.googleapis.com/google.rpc.QuotaFailure"}],
            ),
            "TPUV5sPerProject",
        ),
    ],
    ids=["403", "disabled", "401", "400", "quota"],
)
def test_a_refusal_is_one_line(cloud, capsys, fault, words):
    cloud.faults = [fault]
    assert submit() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert words in said
    assert (record().state, len(cloud.created)) == (State.FAILED, 0)
    assert sum(line.startswith("POST /v2") for line in cloud.requests) == 1  # no retry


def test_a_missing_bucket(cloud, capsys):
    assert submit("--bucket=another-one") == 2
    assert "gs://another-one: no such bucket" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 500, 503, 429])
def test_a_lost_answer_to_create_makes_one(cloud, status):
    cloud.faults = [Fault("POST /v2", status, arrives=True)]
    submit()
    assert cloud.created == ["run"]
    assert watch() == 0


def test_a_lost_answer_and_a_server_that_forgot_the_request(cloud):
    """The name is taken then, but by its label it is ours."""
    cloud.faults = [
        Fault("POST /v2", 0, arrives=True),
        Fault("POST /v2", 409, "already exists"),
    ]
    submit()
    assert cloud.created == ["run"]
    assert watch() == 0


def test_no_answer_at_all_to_create(cloud, capsys):
    """It may exist or not: an error would leave it behind."""
    cloud.faults = [Fault("POST /v2", 0, arrives=True, times=-1)]
    assert submit() == 0
    assert "unknown whether the request for the TPU arrived" in capsys.readouterr().err
    cloud.faults = []
    assert watch() == 0
    assert cloud.created == ["run"]


def test_a_signal_at_create_leaves_nothing_unknown(cloud, monkeypatch):
    class Signalled(FakeSignals):
        def __init__(self):
            super().__init__(lambda waits: self.received.append(signal.SIGINT))

    monkeypatch.setattr(cli_lib, "Signals", Signalled)
    cloud.faults = [Fault("POST /v2", 0, arrives=True)]
    assert submit() == 0
    assert record().state is State.QUEUED
    monkeypatch.setattr(cli_lib, "Signals", FakeSignals)
    assert cli_lib.main(["cancel", "run"]) == 0


def test_a_refusal_after_a_lost_answer_leaves_nothing(cloud):
    cloud.faults = [Fault("POST /v2", 0, arrives=True), Fault("POST /v2", 403, "not any more")]
    assert submit() == 2
    assert cloud.created == ["run"]


def test_a_create_that_never_arrived_is_repeated(cloud):
    cloud.faults = [Fault("POST /v2", 503, times=rest.TRIES)]
    submit()
    assert cloud.created == []
    assert watch() == 0
    assert cloud.created == ["run-r1"]


def test_retry_after_is_respected(cloud, monkeypatch):
    seen = []

    class Noting(FakeSignals):
        def wait(self, seconds, others=()):
            seen.append(seconds)
            return super().wait(seconds)

    monkeypatch.setattr(cli_lib, "Signals", Noting)
    cloud.faults = [Fault("POST /v2", 429, "slow down", headers={"Retry-After": "37"})]
    submit()
    assert seen == [37.0]
    assert watch() == 0


def test_a_short_storm_of_errors_changes_nothing(cloud):
    cloud.plans = [("ACTIVE", "ACTIVE", "done")]
    submit()
    cloud.faults = [Fault("GET", status, times=1, skip=n) for n, status in enumerate((500, 503, 0))]
    assert watch() == 0
    assert cloud.created == ["run"]


def test_a_long_storm_of_errors_is_unknown_and_not_a_restart(cloud, capsys):
    cloud.plans = [("ACTIVE", "ACTIVE", "ACTIVE", "done")]
    submit()
    cloud.faults = [Fault("GET", 503, times=50, skip=5), Fault("DELETE", 500, times=9)]
    assert watch() == 0
    assert cloud.created == ["run"]
    assert "unknown: 127.0.0.1" in capsys.readouterr().out


def test_a_storm_of_errors_at_a_restart_is_waited_for(cloud):
    cloud.plans = [("ACTIVE", "SUSPENDED")]
    submit()
    cloud.faults = [Fault("POST /v2", 503, times=rest.TRIES + 2)]
    assert watch() == 0
    assert cloud.created == ["run", "run-r2"]


def test_answers_that_are_not_json(cloud, monkeypatch):
    submit()
    monkeypatch.setattr(
        rest.Api, "json", lambda *args: (_ for _ in ()).throw(rest.Unavailable("no JSON"))
    )
    seen = backend.Job(record(), FakeSignals()).observe()
    monkeypatch.undo()
    assert seen.state is State.UNKNOWN and not seen.gone
    cloud.queued.clear()


def test_unknown_states_are_unknown(cloud):
    cloud.plans = [("HOVERING", "ACTIVE", "node:MOVING", "done")]
    submit()
    assert watch() == 0
    assert cloud.created == ["run"]


def test_a_name_of_somebody_else(cloud, capsys):
    cloud.take_name("stranger")
    assert submit(name="stranger") == 2
    said = capsys.readouterr().err
    assert "somebody else" in said and "choose another name" in said
    assert cloud.queued["stranger"]["state"] == {"state": "ACTIVE"}
    assert not any(line.startswith("DELETE /v2") for line in cloud.requests)


def test_a_name_of_somebody_else_at_a_restart(cloud, capsys):
    cloud.take_name("stranger-r1")
    cloud.plans = [("ACTIVE", "SUSPENDED")]
    submit(name="stranger")
    assert cli_lib.main(["watch", "stranger"]) == 2
    assert "somebody else" in capsys.readouterr().err
    assert cli_lib.main(["cancel", "stranger"]) == 0
    assert list(cloud.queued) == ["stranger-r1"]


def test_a_run_that_was_done_before(cloud, capsys):
    cloud.object("runs/run/DONE").write_text("best accuracy 0.8\n")
    assert submit() == 0
    assert "already done" in capsys.readouterr().err
    assert watch() == 0
    assert cloud.created == []


def test_a_failure_of_an_earlier_run_is_ignored(cloud):
    cloud.object("runs/run/FAILED").write_text("FAILED 2\nrun of-before attempt 0: x\n")
    cloud.faults = [Fault("DELETE /storage", 503, times=-1)]  # so the file stays
    assert submit() == 2
    cloud.faults = []
    assert submit() == 0
    assert watch() == 0


def test_the_code_is_uploaded_once(cloud, folder):
    cloud.plans = [("ACTIVE", "SUSPENDED")]
    assert submit(f"--folder={folder}", code="") == 0
    (folder / "trainer" / "main.py").write_text("something else, later")
    assert watch() == 0
    (uploaded,) = cloud.objects.rglob("code-*.tar.gz")
    assert archive.sha256(uploaded.read_bytes()) in uploaded.name
    assert sum("upload/storage" in line for line in cloud.requests) == 1
    with tarfile.open(uploaded) as tar:
        assert tar.getnames() == ["requirements-tpu.txt", "trainer/main.py"]


def test_logs_of_all_starts(cloud, capsys):
    cloud.plans = [("ACTIVE", "SUSPENDED")]
    submit()
    watch()
    cloud.object("runs/run/launch/0.log").write_bytes(b"one\ntwo \xff\n")
    cloud.object("runs/run/launch/1.log").write_bytes("drei ü".encode())
    capsys.readouterr()
    assert cli_lib.main(["logs", "run"]) == 0
    assert capsys.readouterr().out == "one\ntwo \\xff\ndrei ü\n"


def test_logs_are_followed_and_read_once(cloud, monkeypatch):
    submit()
    log = cloud.object("runs/run/launch/0.log")
    texts = ["a", "a\nb", "a\nb", "a\nb\nc"]

    def write(waits: int) -> None:
        log.write_text(texts[min(waits, 3)])
        if waits == 4:
            cli_lib.main(["cancel", "run"])

    job = backend.Job(record(), FakeSignals(write))
    assert list(job.logs(follow=True)) == ["a", "b", "c"]
