"""Runs on a real Slurm with two nodes, both this machine (slurm_cluster.py).

Skipped without slurm-wlm or root, unless CI=true."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import cli, records, slurm
from launch.policy import State
from launch.signals import Signals
from launch.spec import JobSpec
from tests.launch import slurm_cluster, worker
from tests.launch.runs import (
    ROOT,
    SMALL,
    Group,
    as_undisturbed,
    check_golden,
    launcher,
    read_until,
    undisturbed_run,
)

_WHY_NOT = slurm_cluster.missing() + ["root"] * bool(os.getuid())
needs_slurm = pytest.mark.skipif(
    bool(_WHY_NOT) and os.environ.get("CI") != "true",
    reason=f"needs {', '.join(_WHY_NOT)}: apt-get install slurm-wlm, as root",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    monkeypatch.setattr(slurm.Job, "poll_s", 0.2)


@pytest.fixture
def group(tmp_path, cluster):
    yield Group(tmp_path, "slurm")
    with Signals() as signals:
        for name in records.names():
            slurm.Job(records.read(name), signals).delete()


def job_of(name: str = "a") -> str:
    return records.read(name).handle["job"]


def shown(job: str) -> dict[str, str]:
    """Returns what Slurm itself reports about a job, once it has ended."""
    after = ["srun", f"--dependency=afterany:{job}", "true"]
    subprocess.run(after, check=True, capture_output=True)
    command = ["scontrol", "--oneliner", "show", "job", job]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


@needs_slurm
def test_a_group_runs_to_its_end(group, capfd):
    assert group.submit({"0": ["say zero"], "1": ["say one"]}, "--env=A=b 'c' $(d)") == 0
    assert cli.main(["watch", "a"]) == 0
    first, second = sorted(group.seen, key=lambda record: record["rank"])
    for record in (first, second):
        config = json.loads(record["environment"]["TF_CONFIG"])
        assert config["task"] == {"type": "worker", "index": record["rank"]}
        assert record["environment"]["A"] == "b 'c' $(d)"
        assert record["environment"]["SLURM_PROCID"] == str(record["rank"])
        ports = {int(address.removeprefix("127.0.0.1:")) for address in config["cluster"]["worker"]}
        assert len(ports) == 2
        assert all(15000 <= port < 32768 for port in ports)
    # Rank 0 runs on the node of its address, the first in the list.
    assert [record["environment"]["SLURMD_NODENAME"] for record in (first, second)] == ["n0", "n1"]
    assert shown(job_of())["JobState"] == "COMPLETED"
    capfd.readouterr()
    assert cli.main(["logs", "a"]) == 0
    assert set(capfd.readouterr().out.splitlines()) == {"[0] zero", "[1] one"}
    assert cli.main(["status", "a", "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert (row["state"], row["exit_code"]) == ("succeeded", 0)


@needs_slurm
def test_the_job_ends_with_the_code_of_the_first_failure(group, capfd):
    """srun alone would report 42, from the worker that saved because of it."""
    plan = {"0": ["tell it", "wait"], "1": ["hear it", "say why", "exit 2"]}
    assert group.submit(plan) == 0
    assert cli.main(["watch", "a"]) == 2
    assert "launch a: failed: worker 1 of 2 ended first, with 2" in capfd.readouterr().out
    assert len(group.seen) == 2
    state = shown(job_of())
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "2:0", "0")


@needs_slurm
def test_a_killed_worker_requeues_the_job(group, capfd):
    plan = {"0-0": ["tell it", "wait"], "0-1": ["hear it", "die SIGKILL"]}
    assert group.submit(plan) == 0
    assert cli.main(["watch", "a"]) == 0
    assert shown(job_of())["Restarts"] == "1"
    assert len(group.seen) == 4
    clusters = [json.loads(t["environment"]["TF_CONFIG"])["cluster"] for t in group.seen]
    assert clusters[0] == clusters[1] != clusters[2] == clusters[3]
    record = records.read("a")
    assert (record.restarts.attempt, record.restarts.charged) == (1, 1)


@pytest.mark.slow
@needs_slurm
def test_restarts_come_to_an_end(group, capfd):
    assert group.submit({"0": ["exit 200"]}, "--max-restarts=1", nodes=1) == 0
    assert cli.main(["watch", "a"]) == 200
    assert len(group.seen) == 2
    assert "not restarted: already restarted 1 times" in capfd.readouterr().out


@needs_slurm
@pytest.mark.parametrize("by", ["launch cancel", "scancel"])
def test_a_cancelled_run_saves_and_is_not_requeued(group, by, capfd):
    assert group.submit({"0": ["wait"], "1": ["wait"]}) == 0
    with launcher(["logs", "--follow", "a"]) as follower:
        read_until(follower, "waiting", 2)
        if by == "scancel":
            subprocess.run(["scancel", job_of()], check=True)
        else:
            assert cli.main(["cancel", "a"]) == 0
        assert cli.main(["watch", "a"]) == 130
        assert read_until(follower, "saved", 2)
    assert shown(job_of())["JobState"] == "CANCELLED"
    assert len(group.seen) == 2
    assert records.read("a").state is State.CANCELLED


@needs_slurm
def test_a_queued_job_is_cancelled(group, tmp_path):
    assert group.submit({}, "--sbatch=--hold") == 0
    with Signals() as signals:
        assert slurm.Job(records.read("a"), signals).observe().state is State.QUEUED
    assert cli.main(["cancel", "a"]) == 0
    assert shown(job_of())["JobState"] == "CANCELLED"
    assert group.seen == []


@needs_slurm
def test_a_job_preempted_by_a_higher_priority_runs_again(group, capfd):
    plan = {"0-0": ["wait"], "0-1": ["wait"], "1-0": ["say again"]}
    assert group.submit(plan, "--partition=low", "--max-restarts=0") == 0
    with launcher(["logs", "--follow", "a"]) as follower:
        read_until(follower, "waiting", 2)
        subprocess.run(["srun", "--partition=high", "--nodes=2", "true"], check=True)
        read_until(follower, "[0] again")
    assert cli.main(["watch", "a"]) == 0
    assert len(group.seen) == 4
    assert shown(job_of())["Restarts"] == "1"
    assert capfd.readouterr().out.count("] saved") == 0


@needs_slurm
def test_a_launcher_that_died_after_sbatch_finds_its_job(group):
    assert group.submit({}, "--sbatch=--hold") == 0
    job, record = job_of(), records.read("a")
    record.handle = {}
    record.save()
    with Signals() as signals:
        slurm.Job(record, signals).create(0)
    assert job_of() == job
    record.handle = {}
    record.save()
    assert cli.main(["cancel", "a"]) == 0  # `cancel` finds it as well
    assert shown(job)["JobState"] == "CANCELLED"


def stand_in(folder: Path, monkeypatch, name: str, text: str) -> None:
    """Wraps a program of Slurm."""
    real = shutil.which(name)
    (folder / name).write_text(f"#!/bin/bash\n{text.replace('REAL', str(real))}\n")
    (folder / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@needs_slurm
@pytest.mark.parametrize(
    "text",
    [
        'REAL "$@" >/dev/null; echo "Socket timed out" >&2; exit 1',
        'echo "lua: note: a short queue"; REAL "$@"',
        'REAL "$@" | sed "s/$/;test/"',
    ],
)
def test_the_job_is_found_whatever_sbatch_prints(group, tmp_path, monkeypatch, text):
    stand_in(tmp_path, monkeypatch, "sbatch", text)
    assert group.submit({}) == 0
    assert re.fullmatch(r"\d+", job_of())
    assert cli.main(["watch", "a"]) == 0
    assert len(group.seen) == 2


@needs_slurm
def test_a_signal_on_its_way_is_not_an_end(group, tmp_path, monkeypatch):
    """Slurm then shows a running job as SIGNALING, for longer on a busy machine."""
    text = 'REAL "$@" | sed s/JobState=RUNNING/JobState=SIGNALING/'
    stand_in(tmp_path, monkeypatch, "scontrol", text)
    assert group.submit({"0-0": ["exit 42"]}, nodes=1) == 0
    assert cli.main(["watch", "a"]) == 0
    assert len(group.seen) == 2


@needs_slurm
def test_a_name_used_again_is_another_job(group):
    assert group.submit({"0": ["exit 2"]}, nodes=1) == 0
    assert cli.main(["watch", "a"]) == 2
    first = job_of()
    assert group.submit({}, nodes=1) == 0  # while the last one may still be completing
    assert cli.main(["watch", "a"]) == 0
    assert job_of() != first


@needs_slurm
def test_the_environment_of_the_trainer_is_not_the_scripts(group, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "7")
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")
    names = ("rank", "port", "node", "workers", "code", "address")
    assert group.submit({}, *(f"--env={name}=mine" for name in names)) == 0
    assert cli.main(["watch", "a"]) == 0
    for record in group.seen:
        assert {record["environment"][name] for name in names} == {"mine"}
    logs = {path.name for path in records.read("a").logs.iterdir()}
    assert logs == {"0-0.log", "0-1.log", "batch.log"}


@needs_slurm
def test_damaged_files_are_not_results(group, tmp_path):
    assert group.submit({"0": ["exit 200"]}, nodes=1) == 0
    record = records.read("a")
    (record.path / "first-9").write_text("")
    with Signals() as signals:
        job = slurm.Job(record, signals)
        assert slurm.after_exit(record, 2, job_of(), 9) == 2
        (record.path / "result.json").write_text("{")
        assert job.observe().state is State.UNKNOWN


@needs_slurm
def test_a_refusal_by_slurm_is_one_line(group, capsys):
    assert group.submit({}, "--partition=nowhere") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: sbatch: ")
    assert "invalid partition" in line
    assert records.read("a").state is State.FAILED


@needs_slurm
def test_the_state_is_unknown_if_the_controller_does_not_answer(group, monkeypatch, tmp_path):
    assert group.submit({}, "--sbatch=--hold") == 0
    config = Path(os.environ["SLURM_CONF"]).read_text()
    other = tmp_path / "slurm.conf"
    port = next(line for line in config.splitlines() if line.startswith("SlurmctldPort="))
    other.write_text(config.replace(port, "SlurmctldPort=1") + "MessageTimeout=2\n")
    with monkeypatch.context() as patch, Signals() as signals:
        patch.setenv("SLURM_CONF", str(other))
        seen = slurm.Job(records.read("a"), signals).observe()
    assert (seen.state, seen.gone) == (State.UNKNOWN, False)
    assert seen.message.startswith("squeue: ")


def test_without_slurm_the_error_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["submit", "--backend=slurm", "--name=a", "--python=/usr/bin/python3"]) == 2
    expected = "error: squeue: not found; submit on a machine with Slurm\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--partition=a b", "--partition=a b: may contain only letters, digits and _.:,=/+@%-"),
        (
            "--time=1\n#SBATCH --wrap=x",
            "--time=1 #SBATCH --wrap=x: may contain only letters, digits",
        ),
        ("--gpus-per-node=-1", "--gpus-per-node=-1: must be at least 0"),
        ("--sbatch=x", "--sbatch=x: must be a flag of sbatch, such as --exclude=node7"),
        ("--sbatch=--array=1-2", "--sbatch=--array=1-2: set by the launcher"),
        ("--sbatch=--comment=x", "--sbatch=--comment=x: set by the launcher"),
        ("--sbatch=--export=API_KEY=hunter2", "--sbatch=…: looks like a secret"),
    ],
)
def test_mistakes_are_named(flag, expected, capsys):
    assert cli.main(["submit", "--backend=slurm", "--name=a", "--dry-run", flag]) == 2
    assert capsys.readouterr().err.startswith(f"error: {expected}")


def spec(**values) -> JobSpec:
    options = slurm.Options(**{"python": "/opt/venv/bin/python", **values.pop("options", {})})
    fixed = {
        "name": "digits",
        "run": "RUN",
        "backend": "slurm",
        "nodes": 2,
        "workdir": "",
        "max_restarts": 10,
    }
    fixed |= {"env": (), "folder": "/home/me/trainer", "record_dir": "/home/me/launch/digits"}
    return JobSpec(**{**fixed, "args": ("--strategy=multi_worker",), **values, "options": options})


def test_the_golden_file():
    options = {"partition": "gpu", "time": "24:00:00", "gpus_per_node": 8, "mem": "64G"}
    args = ("--strategy=multi_worker", "--set=data.name=my photos")
    one = spec(args=args, env=(("A", "b c"),), options={**options, "sbatch": ("--exclude=n 7",)})
    check_golden("slurm", slurm.render(one))


_texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """srun and scontrol for tests of bash alone: a real Slurm takes a second per job."""
    folder = tmp_path_factory.mktemp("stand-ins")
    texts = {"srun": 'shift 3\nSLURM_PROCID=1 exec "$@"', "scontrol": "echo n7"}
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o700)
    return folder


@given(args=st.lists(_texts, max_size=4), value=_texts, name=_texts)
@settings(max_examples=30, deadline=None)
def test_the_script_passes_hostile_text_on(stand_ins, tmp_path_factory, args, value, name):
    folder = tmp_path_factory.mktemp("script ' $(x)")
    plan, args = folder / "plan", [arg for arg in args if "workdir" not in arg]
    plan.write_text("{}")
    one = spec(
        args=(*args, f"--plan={plan}"),
        workdir=f"{folder}/{name}",
        env=(("A", value),),
        folder=str(folder),
        options={"python": worker.write(folder)},
    )
    script = slurm.render(one)[1].text
    own = {
        "PATH": f"{stand_ins}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n7",
    }
    # Its last line applies the policy, which is tested above.
    script = script.rpartition("exec ")[0] + 'exit "$code"\n'
    subprocess.run(["bash", "-c", script], check=True, env=os.environ | own)
    (record,) = worker.seen(plan)
    assert record["arguments"] == [*one.trainer_args(one.workdir)]
    assert record["environment"]["A"] == value


@pytest.mark.slow
@needs_slurm
def test_two_nodes_train_through_a_preemption(cluster, tmp_path, capfd):
    workdir, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    undisturbed_run(undisturbed)
    trainer = ["--strategy=multi_worker", *SMALL, f"--workdir={workdir}"]
    own = ["--name=a", "--nodes=2", f"--folder={ROOT}"]
    assert cli.main(["submit", "--backend=slurm", *own, "--", *trainer]) == 0
    with launcher(["logs", "--follow", "a"]) as follower:
        read_until(follower, "evaluated")
        subprocess.run(["srun", "--partition=high", "--nodes=2", "true"], check=True)
        read_until(follower, "[0] from step ")
    assert cli.main(["watch", "a"]) == 0
    as_undisturbed(workdir, undisturbed)


@pytest.mark.slow
@needs_slurm
def test_a_run_saves_before_its_time_limit_and_resumes(group):
    plan = {"0-0": ["wait"], "0-1": ["wait"]}
    assert group.submit(plan, "--time=1", "--save-s=55", "--max-restarts=0") == 0
    assert cli.main(["watch", "a"]) == 0
    assert len(group.seen) == 4
