"""Runs on Cloud TPU VMs, against a stand-in for Google's servers (tests/fake_tpu_api.py)."""

import copy
import functools
import json
import os
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from launch import archive, health, rest, tpu_api
from launch import cli as cli_lib
from launch.backends import tpu_vm
from launch.errors import LaunchError
from launch.policy import State
from launch.spec import JobSpec
from tests import tpu_runs
from tests.fake_tpu_api import Fault
from tests.tpu_runs import FakeSignals, record, spec, submit, watch

cloud, folder = tpu_runs.cloud, tpu_runs.folder  # the fixtures

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "launch"
QUEUED = "/v2/projects/p/locations/z/queuedResources"


# A run, and what may happen to it.


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
    assert cli_lib.main(["status", "run"]) == 0  # asks nobody any more
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
def test_a_preempted_run_goes_on(cloud, first):
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
    for number in range(9):  # so that a lack of progress is not what ends it
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
    assert sum(line.startswith("POST /v2") for line in cloud.requests) == 1  # asked once


def test_a_bucket_that_is_not_there(cloud, capsys):
    assert submit("--bucket=another-one") == 2
    assert "gs://another-one: there is no such bucket" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 500, 503, 429])
def test_a_lost_answer_to_create_makes_one(cloud, status):
    cloud.faults = [Fault("POST /v2", status, arrives=True)]
    submit()
    assert cloud.created == ["run"]
    assert watch() == 0


def test_a_lost_answer_and_a_server_that_forgot_the_request(cloud):
    """Then the name is taken, and by its label it is ours."""
    cloud.faults = [
        Fault("POST /v2", 0, arrives=True),
        Fault("POST /v2", 409, "already exists"),
    ]
    submit()
    assert cloud.created == ["run"]
    assert watch() == 0


def test_no_answer_at_all_to_create(cloud, capsys):
    """It may be there or not: no error that would leave it behind."""
    cloud.faults = [Fault("POST /v2", 0, arrives=True, times=-1)]
    assert submit() == 0
    assert "not known yet" in capsys.readouterr().err
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


def test_a_create_that_never_arrived_is_made_up_for(cloud):
    cloud.faults = [Fault("POST /v2", 503, times=rest.TRIES)]
    submit()
    assert cloud.created == []
    assert watch() == 0
    assert cloud.created == ["run-r1"]


def test_retry_after_is_kept_to(cloud, monkeypatch):
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


def test_a_short_storm_is_nothing(cloud):
    cloud.plans = [("ACTIVE", "ACTIVE", "done")]
    submit()
    cloud.faults = [Fault("GET", status, times=1, skip=n) for n, status in enumerate((500, 503, 0))]
    assert watch() == 0
    assert cloud.created == ["run"]


def test_a_long_storm_is_unknown_and_no_restart(cloud, capsys):
    cloud.plans = [("ACTIVE", "ACTIVE", "ACTIVE", "done")]
    submit()
    cloud.faults = [Fault("GET", 503, times=50, skip=5), Fault("DELETE", 500, times=9)]
    assert watch() == 0
    assert cloud.created == ["run"]
    assert "unknown: 127.0.0.1" in capsys.readouterr().out


def test_a_storm_at_the_re_creation_is_waited_for(cloud):
    cloud.plans = [("ACTIVE", "SUSPENDED")]
    submit()
    cloud.faults = [Fault("POST /v2", 503, times=rest.TRIES + 2)]
    assert watch() == 0
    assert cloud.created == ["run", "run-r2"]


def test_answers_that_are_no_json(cloud, monkeypatch):
    submit()
    monkeypatch.setattr(
        rest.Api, "json", lambda *args: (_ for _ in ()).throw(rest.Unavailable("no JSON"))
    )
    seen = tpu_vm.Job(record(), FakeSignals()).observe()
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


def test_a_failure_of_an_earlier_run_is_none(cloud):
    cloud.object("runs/run/FAILED").write_text("FAILED 2\nrun of-before attempt 0: x\n")
    cloud.faults = [Fault("DELETE /storage", 503, times=-1)]  # which leaves it where it is
    assert submit() == 2
    cloud.faults = []
    assert submit() == 0
    assert watch() == 0


# The end of it.


@pytest.mark.parametrize("steps", [("CREATING",), ("PROVISIONING",), ("ACTIVE",), ("SUSPENDED",)])
def test_cancel_leaves_nothing(cloud, steps):
    cloud.plans = [steps]
    submit()
    tpu_vm.Job(record(), FakeSignals()).observe()
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
    tpu_vm.Job(record(), FakeSignals()).observe()
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


def test_what_cannot_be_deleted_is_said(cloud, capsys, monkeypatch):
    monkeypatch.setattr(tpu_vm, "_LONGEST_DELETE_S", 60.0)
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


# What is uploaded, and read.


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


def test_an_archive_is_the_same_each_time(folder):
    data = archive.pack(str(folder))
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    (folder / "runs").mkdir()
    (folder / "runs" / "checkpoint").write_text("x")
    (folder / ".venv").mkdir()
    (folder / ".venv" / "pip").write_text("x")
    assert archive.pack(str(folder)) == data


def test_an_archive_of_a_checkout_has_what_git_tracks(folder):
    (folder / "notes").write_text("not for git")
    (folder / "gone").write_text("x")
    (folder / "link").symlink_to("trainer")
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "trainer", "gone", "link"], check=True)
    (folder / "gone").unlink()
    (folder / "packed.tar.gz").write_bytes(archive.pack(str(folder)))
    with tarfile.open(folder / "packed.tar.gz") as tar:
        assert tar.getnames() == ["link", "trainer/main.py"]
        assert tar.getmember("link").linkname == "trainer"


def test_an_archive_has_limits(folder, monkeypatch):
    monkeypatch.setattr(archive, "MOST_BYTES", 10)
    with pytest.raises(LaunchError, match=r"--folder=.*MiB.*--code=git"):
        archive.pack(str(folder))
    empty = folder / "runs"
    empty.mkdir()
    with pytest.raises(LaunchError, match="no code to upload"):
        archive.pack(str(empty))


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

    job = tpu_vm.Job(record(), FakeSignals(write))
    assert list(job.logs(follow=True)) == ["a", "b", "c"]


# Health, by API v1.


def test_health_is_a_second_reading(cloud, capsys, monkeypatch):
    monkeypatch.setattr(health, "of", functools.partial(health.of, limit_s=60))
    cloud.plans = [("ACTIVE", "ACTIVE")]
    submit()
    assert cli_lib.main(["status", "run", "--health", "--json"]) == 0
    (row,) = json.loads("[" + capsys.readouterr().out.partition("\n[")[2])
    assert row["health"] == {"source": "API v1", "state": "READY", "health": "HEALTHY"}
    cli_lib.main(["cancel", "run"])
    assert "HttpError 404" in health.of(record(), limit_s=60)["error"]


def test_health_has_a_limit(cloud):
    submit()
    cloud.hangs.set()
    assert health.of(record(), limit_s=0.2)["error"] == "no answer within 0.2 s"
    cli_lib.main(["cancel", "run"])


def test_health_of_other_back_ends(cloud, tmp_path):
    cli_lib.main(["submit", "--backend=local", "--name=here", "--python=false", "--", "--x"])
    assert health.of(record("here")) == {}


# What is rendered.


def golden(name: str, rendered: JobSpec) -> None:
    tpu_vm.check(rendered)
    text = "".join(f"--- {d.title}\n{d.text}" for d in tpu_vm.render(rendered))
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), "UPDATE_GOLDEN=1 renews it"


@pytest.fixture
def no_overrides(monkeypatch):
    monkeypatch.delenv("TPU_API_URL", raising=False)
    monkeypatch.delenv("STORAGE_API_URL", raising=False)


def test_golden_spot(no_overrides, folder):
    args = ("--config=configs/x.py", "--set", "optimizer.learning_rate=0.8")
    env = [("GREETING", "it's $(late)")]
    golden(
        "tpu-vm-spot.txt", spec(*args, env=env, folder=str(folder), spot=True, zone="us-west4-a")
    )


def test_golden_slice(no_overrides):
    options = {
        "accelerator": "v4-32",
        "reserved": True,
        "code": "git+https://example.com/code@v1.0",
        "network": "net",
        "subnetwork": "sub",
        "service_account": "trainer@p.iam.gserviceaccount.com",
        "valid_until_s": 3600,
    }
    golden("tpu-vm-slice.txt", spec("--strategy=tpu", workdir="gs://b-1/my runs/é", **options))


def test_render_needs_no_network_and_is_pure(no_overrides, folder, monkeypatch):
    monkeypatch.setattr(rest.Api, "_open", lambda self: pytest.fail("asks the network"))
    first = tpu_vm.render(spec("--x", folder=str(folder)))
    assert tpu_vm.render(spec("--x", folder=str(folder))) == first


def test_what_is_sent_is_what_is_rendered(cloud, folder, capsys):
    submit(f"--folder={folder}", "--dry-run", code="")
    shown = capsys.readouterr().out
    submit(f"--folder={folder}", code="")
    run = record().spec.run
    sent = copy.deepcopy({"tpu": cloud.queued["run"]["tpu"]})
    node = sent["tpu"]["nodeSpec"][0]["node"]
    assert node["labels"].pop("trainer-run") == run
    node["labels"] = {"trainer-run": "run", **node["labels"]}
    script = node["metadata"]["startup-script"] = node["metadata"]["startup-script"].replace(
        run, "RUN"
    )
    assert script in shown
    request = shown.partition("--- request for the TPU\n")[2]
    assert request.startswith(f"POST {cloud.url}{QUEUED}?queuedResourceId=run&requestId=")
    assert request.partition("\n\n")[2] == json.dumps(sent, indent=2) + "\n"
    (posted,) = [line for line in cloud.requests if "upload/storage" in line]
    assert posted.replace("POST ", f"POST {cloud.url}") in shown
    cli_lib.main(["cancel", "run"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"project": ""}, "--project is needed"),
        ({"zone": ""}, "--zone is needed"),
        ({"accelerator": ""}, "--accelerator is needed"),
        ({"accelerator": "v9-8"}, "--accelerator=v9-8: unknown"),
        ({"spot": True, "reserved": True}, "exclude"),
        ({"workdir": "runs/x"}, "the VM's disk goes with the VM"),
        ({"workdir": "gs://bucket"}, "gs://BUCKET/FOLDER"),
        ({"workdir": "gs://bucket/a/../b"}, "'..'"),
        ({"workdir": "gs://bucket/a\nb"}, "ends of lines"),
        ({"workdir": "gs://Bucket!/a"}, "no bucket"),
        ({"code": "https://example.com/code"}, "must be git+https"),
        ({"code": "git+https://example.com/code"}, "must be git+https"),
        ({"code": "git+https://example.com/code@-x"}, "must be git+https"),
        ({"network": "a b"}, "--network=a b"),
        ({"valid_until_s": -1}, "at least 0"),
    ],
)
def test_check(changes, words):
    with pytest.raises(LaunchError) as error:
        tpu_vm.check(spec("--x", **changes))
    assert words in str(error.value)


def test_check_of_the_trainers_flags():
    with pytest.raises(LaunchError, match="on a TPU it is tpu"):
        tpu_vm.check(spec("--strategy=mirrored"))
    with pytest.raises(LaunchError, match="start-up script larger than"):
        tpu_vm.check(spec("--set=" + "x" * 300_000))


@pytest.mark.parametrize(
    ("accelerator", "number"),
    [
        *[("v2-8", 1), ("v3-32", 4), ("v4-8", 1), ("v4-16", 2), ("v5p-8", 1), ("v5p-128", 16)],
        *[("v5litepod-1", 1), ("v5litepod-8", 1), ("v5litepod-16", 4), ("v6e-256", 64)],
        *[("v6e", 0), ("v6e-", 0), ("h100-8", 0), ("v6e-x", 0)],
    ],
)
def test_hosts(accelerator, number):
    assert tpu_api.hosts(accelerator) == number


def test_secrets_are_refused_and_none_is_printed(cloud, capsys):
    assert submit("--env=TOKEN=x") == 2
    assert submit("--env=A=ya29.abcdefghij") == 2
    said = capsys.readouterr()
    assert "ya29" not in said.out + said.err
    assert not cloud.requests
