"""Real processes on this machine: their input, which one failed first, and the consequences.

Most follow a plan instead of training (worker.py); the slow tests train.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import cli, local, logs, records
from launch.policy import State
from tests.launch import worker
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
from tests.launch.specs import spec as make_spec


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(local.Job, "backoff_s", 0.0)


@pytest.fixture
def group(tmp_path):
    return Group(tmp_path, "local")


def test_each_worker_gets_its_rank_and_its_share_of_the_cores(group, capfd):
    assert group.submit({"0": ["say zero"], "1": ["say one"]}, "--env=A=b c", nodes=2) == 0
    first, second = sorted(group.seen, key=lambda record: record["rank"])
    for record in (first, second):
        cluster = json.loads(record["environment"]["TF_CONFIG"])
        assert cluster["task"] == {"type": "worker", "index": record["rank"]}
        assert record["environment"]["A"] == "b c"
        assert record["arguments"] == [
            *("-m", "trainer.main", "--strategy=multi_worker"),
            *(f"--plan={group.plan}", f"--workdir={group.workdir}"),
        ]
        addresses = cluster["cluster"]["worker"]
        assert len(set(addresses)) == 2
        assert {address.partition(":")[0] for address in addresses} == {"localhost"}
    cores = os.sched_getaffinity(0)
    if len(cores) >= 2:
        assert set(first["cores"]) | set(second["cores"]) == cores
        assert not set(first["cores"]) & set(second["cores"])
    output = capfd.readouterr().out.splitlines()
    assert {"[0] zero", "[1] one", "launch a: succeeded"} <= set(output)


def test_more_workers_than_cores_share_them(group):
    nodes = len(os.sched_getaffinity(0)) + 1
    assert group.submit({}, nodes=nodes) == 0
    assert {record["rank"] for record in group.seen} == set(range(nodes))
    assert {len(record["cores"]) for record in group.seen} == {nodes - 1}


@pytest.mark.parametrize(
    ("shown", "flags", "expected"),
    [
        ("0,1,2,3", (), ["0,1", "2,3"]),
        ("GPU-a,GPU-b", (), ["GPU-a", "GPU-b"]),
        ("0,1,2,3", ("--gpus=2",), ["0", "1"]),
        (None, (), ["0,1", "2,3"]),  # from a stand-in for nvidia-smi
        ("", (), ["", ""]),
    ],
)
def test_gpus_are_shared_out(group, tmp_path, monkeypatch, shown, flags, expected):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nfor i in 0 1 2 3; do echo GPU $i: a card; done\n")
    smi.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert group.submit({}, *flags) == 0
    workers = sorted(group.seen, key=lambda record: record["rank"])
    assert [record["environment"].get("CUDA_VISIBLE_DEVICES", "") for record in workers] == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--gpus=9",), "--gpus=9: this machine shows 3; ask for fewer"),
        ((), "--nodes=2: cannot share 3 GPUs evenly; use --gpus=2"),
        (("--python=/no/python",), "/no/python: cannot be started in "),
        (("--grace-s=-1",), "--grace-s=-1: must be at least 0"),
    ],
)
def test_a_run_that_cannot_start_is_named_and_leaves_nothing(
    group, monkeypatch, capsys, flags, expected
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2" if "--gpus=9" in flags or not flags else "")
    assert group.submit({}, *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {expected}")
    assert group.seen == []
    with contextlib.suppress(records.LaunchError):
        assert records.read("a").state is State.FAILED


@pytest.mark.parametrize("code", [1, 2, 43])
def test_the_first_failure_is_reported_and_the_others_save(group, capfd, code):
    last = ["hear of 0", "hear of 2", "say this is why", f"exit {code}"]
    plan = {"0": ["tell of 0", "wait"], "1": last, "2": ["tell of 2", "wait"]}
    assert group.submit(plan, nodes=3) == code
    assert len(group.seen) == 3  # not started again
    output = capfd.readouterr().out.splitlines()
    assert f"launch a: failed: worker 1 of 3 ended first, with {code}" in output
    at = output.index("the last lines of worker 1:")
    assert output[at + 1] == "[1] this is why"
    record = records.read("a")
    assert (record.state, record.exit_code) == (State.FAILED, code)
    assert not local._marked(record)


def test_a_killed_worker_takes_the_group_down_and_it_starts_again_at_other_ports(group, capfd):
    plan = {"0-0": ["tell it", "wait"], "0-1": ["hear it", "die SIGKILL"]}
    assert group.submit(plan) == 0
    ports = [json.loads(record["environment"]["TF_CONFIG"])["cluster"] for record in group.seen]
    assert len(group.seen) == 4
    assert ports[0] == ports[1] != ports[2] == ports[3]
    text = (
        "launch a: preempted (start 2): worker 1 of 2 ended first, with 137, by SIGKILL; restart 1"
    )
    assert f"{text}, 1 of 10 charged" in capfd.readouterr().out
    files = {path.name for path in records.read("a").logs.iterdir()}
    assert files == {"0-0.log", "0-1.log", "1-0.log", "1-1.log"}


def test_restarts_that_count_come_to_an_end(group, capfd):
    plan = {"0": ["tell it", "wait"], "1": ["hear it", "exit 200"]}
    assert group.submit(plan, "--max-restarts=2") == 200
    assert len(group.seen) == 6
    assert "not restarted: already restarted 2 times (--max-restarts)" in capfd.readouterr().out


def test_preemptions_are_free_while_there_is_progress(group):
    plan = {f"{start}-0": ["checkpoint x", "exit 42"] for start in range(8)}
    assert group.submit(plan, "--max-restarts=0", nodes=1) == 0
    assert len(group.seen) == 9


def test_preemptions_without_progress_come_to_an_end(group, capfd):
    assert group.submit({"0": ["exit 143"]}, nodes=1) == 1
    assert len(group.seen) == 5
    assert "it ended 5 times in a row without a new checkpoint" in capfd.readouterr().out


def test_a_worker_that_does_not_save_in_time_is_killed(group, capfd):
    plan = {"0": ["tell it", "stay"], "1": ["hear it", "exit 2"]}
    assert group.submit(plan, "--grace-s=0") == 2
    assert not local._marked(records.read("a"))


def test_sigterm_saves_and_watch_resumes(group):
    plan = {"0-0": ["wait"], "0-1": ["wait"], "1-0": ["say again"]}
    with group.submitted(plan, until=2) as process:
        process.terminate()
        output = process.stdout.read()
        assert process.wait() == 42
    assert output.count("] saved") == 2
    assert (
        "launch a: preempted: stopped by a signal; `python -m launch watch a` resumes it" in output
    )
    assert records.read("a").state is State.PREEMPTED
    assert cli.main(["watch", "a"]) == 0
    assert len(group.seen) == 4


def test_ctrl_c_saves_and_ends_the_run_and_its_name_is_free(group):
    plan = {"0-0": ["wait"], "0-1": ["wait"]}
    with group.submitted(plan, until=2) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().count("] saved") == 2
        assert process.wait() == 130
    assert records.read("a").state is State.CANCELLED
    assert cli.main(["watch", "a"]) == 130  # it is not started again
    assert len(group.seen) == 2
    assert group.submit(plan) == 0
    assert sorted(path.name for path in records.home().iterdir()) == ["a", "a~1"]
    assert records.names() == ["a"]


def test_a_second_ctrl_c_does_not_wait(group):
    with group.submitted({"0": ["stay"], "1": ["stay"]}, "--grace-s=60", until=2) as process:
        process.send_signal(signal.SIGINT)
        read_until(process, "a second signal stops it at once")
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert not local._marked(records.read("a"))


def test_after_the_launcher_is_killed_another_finds_the_run(group, capsys):
    plan = {"0-0": ["wait"], "0-1": ["wait"]}
    with group.submitted(plan, until=2) as process:
        process.kill()
        process.wait()
    assert len(local._marked(records.read("a"))) == 2  # they keep training
    assert cli.main(["list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["state"], row["watched"]) == ("a", "running", False)
    assert group.submit({}) == 2  # the name is taken
    assert "--name=a: taken by a run that is running" in capsys.readouterr().err
    assert cli.main(["watch", "a"]) == 0
    assert len(group.seen) == 4
    assert not local._marked(records.read("a"))


@pytest.mark.parametrize("launcher_lives", [True, False])
def test_cancel_from_elsewhere(group, capsys, launcher_lives):
    with group.submitted({"0": ["wait"], "1": ["wait"]}, until=2) as process:
        if not launcher_lives:
            process.kill()
            process.wait()
        assert cli.main(["cancel", "a"]) == 0
        assert "a: cancelled" in capsys.readouterr().out
        if launcher_lives:
            assert process.wait() == 130
    assert not local._marked(records.read("a"))
    assert cli.main(["watch", "a"]) == 130
    assert len(group.seen) == 2


def test_a_second_watch_only_looks(group):
    with group.submitted({"0": ["wait"], "1": ["wait"]}, until=2) as process:
        with launcher(["watch", "a"]) as other:
            read_until(other, "launch a: running")
            other.send_signal(signal.SIGINT)
            assert other.wait() == 130
        assert process.poll() is None
        process.terminate()
        assert process.wait() == 42


def test_a_reader_that_stops_does_not_end_the_run(group):
    """As in `submit … | head -1`: the launcher continues, and the logs are in its record."""
    plan = {"0": ["say one", "hear it", "say two", "exit 0"], "1": ["tell it"]}
    with launcher(group.arguments(plan)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait() == 0
    assert (records.read("a").logs / "0-0.log").read_text() == "one\ntwo\n"


@pytest.fixture
def terminal_closes():
    """Resets SIGHUP to its default: under nohup it is ignored, and children inherit that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_nohup_is_respected(group, terminal_closes):
    """Closing the terminal does not end a run under nohup; without nohup, the run saves."""
    arguments = group.arguments({"0": ["wait"], "1": ["wait"]})
    for prefix, code in ((["nohup"], None), ([], 42)):
        pipe = subprocess.PIPE
        command = [*prefix, sys.executable, "-m", "launch", *arguments]
        with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
            read_until(process, "waiting", 2)
            process.send_signal(signal.SIGHUP)
            if code is None:
                assert cli.main(["cancel", "a"]) == 0
            else:
                process.send_signal(signal.SIGHUP)  # a shell and the kernel may both send it
            assert process.wait() == (130 if code is None else code)
    assert not local._marked(records.read("a"))


def test_a_record_that_is_taken_away_ends_the_workers_saved(group, tmp_path):
    with group.submitted({"0": ["wait"], "1": ["wait"]}, until=2) as process:
        folder = records.home() / "a"
        logs = [os.open(folder / "logs" / f"0-{rank}.log", os.O_RDONLY) for rank in (0, 1)]
        shutil.rmtree(folder)
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()
        assert process.wait() == 2
    assert "error: " in output
    assert "Traceback" not in output
    for log in logs:
        assert os.read(log, 1000).endswith(b"saved\n")
        os.close(log)


def test_a_line_without_an_end_is_cut(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"x" * (5 * 2**20) + b"\nlast \xff\r\n")
    lines = list(logs.Tail(log, "[0] ").lines())
    assert lines[-1] == "[0] last \\xff"
    assert sum(line.count("x") for line in lines[:-1]) == 5 * 2**20
    assert max(map(len, lines)) <= 2**21 + 4
    assert logs.last_lines(log, 1, "[0] ") == ["[0] last \\xff"]


def test_logs_of_all_starts(group, capsys):
    assert group.submit({"0-0": ["say first", "exit 42"], "0": ["say second"]}, nodes=1) == 0
    capsys.readouterr()
    assert cli.main(["logs", "a"]) == 0
    assert capsys.readouterr().out == "[0] first\n[0] second\n"


def test_logs_follow_until_the_end(group):
    with group.submitted({"0": ["wait"], "1": ["wait"]}, until=2) as process:
        with launcher(["logs", "--follow", "a"]) as follower:
            read_until(follower, "waiting", 2)
            process.terminate()
            rest = follower.stdout.read()
            assert follower.wait() == 0
        process.wait()
    assert rest.count("] saved") == 2


def test_the_golden_file_of_a_group_here():
    fixed = {"record_dir": "/home/me/launch/digits", "env": (("A", "b 'c' $(d)"),)}
    check_golden(
        "local", local.render(make_spec(args=("--strategy=multi_worker", "--set=a=b c"), **fixed))
    )


_texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


@given(args=st.lists(_texts, max_size=4), value=_texts, workdir=_texts)
@settings(max_examples=30, deadline=None)
def test_the_shown_commands_do_the_same_in_bash(tmp_path_factory, args, value, workdir):
    """With hostile arguments; secrets and invalid text are refused earlier."""
    folder = tmp_path_factory.mktemp("shown")
    plan, out = folder / "plan", folder / "run ' $(x)"
    plan.write_text("{}")
    args = [arg for arg in args if "workdir" not in arg]
    flags = [
        "--backend=local",
        "--name=a",
        f"--env=A={value}",
        f"--python={worker.write(folder)}",
    ]
    workdir = f"{out}{workdir}"
    parsed = cli._parse(["submit", *flags, f"--folder={folder}"])
    spec = cli._spec(parsed, [*args, f"--plan={plan}", f"--workdir={workdir}"])
    (document,) = local.render(spec)
    subprocess.run(["bash", "-c", document.text], check=True)
    (record,) = worker.seen(plan)
    assert record["arguments"] == [*spec.trainer_args(workdir)]
    assert record["arguments"][2:-2] == args
    assert record["environment"]["A"] == value


def _worker(workdir: Path, rank: int) -> int:
    """Returns the process ID of a worker that trains."""
    (record,) = [records.read(name) for name in records.names()]
    pids = [pid for pid in local._marked(record) if os.getsid(pid) == pid]
    for pid in pids:
        environment = Path(f"/proc/{pid}/environ").read_text()
        if f'"index": {rank}' in environment:
            return pid
    raise AssertionError(pids)


def _trainer(name: str, nodes: int, workdir: Path) -> list[str]:
    flags = [f"--name={name}", f"--nodes={nodes}", f"--folder={ROOT}"]
    trainer = ["--strategy=multi_worker", *SMALL, f"--workdir={workdir}"]
    return ["submit", "--backend=local", *flags, "--", *trainer]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of an uninterrupted run in one process."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    undisturbed_run(workdir)
    return workdir


@pytest.mark.slow
def test_two_workers_train_through_a_kill_and_a_preemption(undisturbed, tmp_path):
    workdir = tmp_path / "run"
    with launcher(_trainer("two", 2, workdir)) as process:
        read_until(process, "evaluated")
        os.kill(_worker(workdir, 1), signal.SIGKILL)
        lines = read_until(process, "evaluated")
        text = "\n".join(lines)
        assert "worker 1 of 2 ended first, with 137, by SIGKILL; restart 1, 1 of 10" in text
        assert "error: another worker ended or cannot be reached" in text
        assert "Traceback" not in text
        assert "[0] from step " in text
        os.kill(_worker(workdir, 1), signal.SIGTERM)  # one worker only, but all save
        text = process.stdout.read()
        assert process.wait() == 0
    assert "with 42; restart 2\n" in text
    as_undisturbed(workdir, undisturbed)


@pytest.mark.slow
def test_three_workers_train_after_a_port_was_taken_and_after_ctrl_c(
    undisturbed, tmp_path, monkeypatch, capfd
):
    workdir = tmp_path / "run"
    free_ports = local._free_ports
    with socket.create_server(("", 0)) as taken:

        @contextlib.contextmanager
        def one_is_taken(number: int) -> Iterator[list[int]]:
            monkeypatch.setattr(local, "_free_ports", free_ports)
            with free_ports(number - 1) as ports:
                yield [*ports, taken.getsockname()[1]]

        monkeypatch.setattr(local, "_free_ports", one_is_taken)
        assert cli.main([*_trainer("three", 3, workdir), "--set=num_epochs=2"]) == 0
    output = capfd.readouterr().out
    assert "error: TF_CONFIG: worker 2 cannot listen at localhost:" in output
    assert "worker 2 of 3 ended first, with 200; restart 1, 1 of 10 charged" in output

    again = tmp_path / "again"
    with launcher(_trainer("three", 3, again)) as process:
        # After the first loop: far from the end, even on a busy machine.
        read_until(process, "from the command to here")
        process.send_signal(signal.SIGINT)
        text = process.stdout.read()
        assert process.wait() == 130
    assert "stopped: saved at step" in text
    assert cli.main(_trainer("three", 3, again)) == 0
    as_undisturbed(again, undisturbed)
