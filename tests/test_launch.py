"""What all back ends share: the command, the spec, the policy, the records, the state machine."""

import ast
import dataclasses
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import backends, cli, records
from launch import spec as spec_lib
from launch import watch as watch_lib
from launch.backends import local
from launch.backends.interface import Observation
from launch.errors import LaunchError, redacted
from launch.policy import (
    MAX_WITHOUT_PROGRESS,
    Outcome,
    Restarts,
    State,
    first_to_end,
    outcome,
    shell_code,
)
from launch.records import Record
from launch.spec import JobSpec
from tests.launch_runs import ROOT, check_golden
from tests.test_imports import imports, packages


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def spec(**values) -> JobSpec:
    fixed = {
        "name": "digits",
        "run": "RUN",
        "backend": "local",
        "nodes": 2,
        "workdir": "",
        "max_restarts": 10,
    }
    fixed |= {"env": (), "folder": "/home/me/trainer", "options": local.Options("/opt/bin/python")}
    fixed["record_dir"] = str(records.home() / "digits")
    return JobSpec(**{**fixed, "args": ("--strategy=multi_worker",), **values})


def made() -> Record:
    """A run's first record, which nobody holds."""
    with records.create(spec()) as record:
        return record


# The package.


@pytest.mark.parametrize("path", sorted((ROOT / "launch").rglob("*.py")), ids=lambda p: p.stem)
def test_launch_imports_neither_the_trainer_nor_tensorflow(path):
    found = packages(imports(path.read_text()))
    assert found & {"trainer", "tensorflow", "tf_keras", "keras", "numpy", "absl"} == set()


def test_what_is_heavy_is_imported_late():
    """A list of runs, and what is shown of one, need none of it."""
    code = (
        "import sys\nfrom launch import backends, cli\nfor name in backends.BACKENDS:\n"
        "    backends.load(name)\ncli.main(['list'])\n"
        "print({'yaml', 'requests', 'google.auth', 'cloud_tpu_client'} & set(sys.modules))"
    )
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert output == "no runs\nset()\n"


# The policy, against launch.md's table of exit codes.


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0], Outcome.DONE),
        ([42, 143], Outcome.RESTART),
        ([129, 130, 134, 137, 142, 144, 200, 255], Outcome.RESTART_CHARGED),
        ([1, 2, 41, 43, 126, 127, 128], Outcome.FAIL),
    ],
)
def test_what_exit_codes_ask_for(codes, expected):
    assert {outcome(code) for code in codes} == {expected}


@pytest.mark.parametrize(
    ("codes", "rank"),
    [
        ([None, 0, 0], None),
        ([None, 2, 42], 1),
        ([200, 1], 1),  # an error of its own, not that of another's end
        ([1, 137], 1),
        ([200, 137, 1], 1),
        ([42, 200], 0),
        ([2, 43], 0),
    ],
)
def test_who_brought_the_others_down(codes, rank):
    assert first_to_end(codes) == rank


def test_signals_are_codes_as_a_shell_has_them():
    told = subprocess.check_output(["bash", "-c", "bash -c 'kill -9 $$'; echo $?"], text=True)
    assert shell_code(subprocess.call(["bash", "-c", "kill -9 $$"])) == int(told) == 137
    assert shell_code(2) == 2


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("ab")), max_size=30), st.integers(0, 5))
def test_restarts_are_counted(ends, most):
    """Against a plain count over all that was, at each end."""
    restarts, past = Restarts(), []
    for charged, progress in ends:
        refusal = restarts.refusal(charged, most, progress)
        counted = sum(was_charged for was_charged, _ in past)
        marks = ["", *(mark for _, mark in past), progress]
        same = next(
            i for i in range(len(marks)) if marks[-1 - i] != progress or i + 1 == len(marks)
        )
        stuck = same - 1 >= MAX_WITHOUT_PROGRESS
        assert bool(refusal) == ((charged and counted >= most) or stuck)
        if refusal:
            return
        past.append((charged, progress))
        assert (restarts.attempt, restarts.charged) == (len(past), counted + charged)


# The spec.


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": "Digits"}, "--name=Digits: must be lower-case letters"),
        ({"name": "a" * 41}, f"--name={'a' * 41}: must be lower-case letters"),
        ({"name": "a-"}, "--name=a-: must be"),
        ({"name": ""}, "--name=: must be"),
        ({"name": "../x"}, "--name=../x: must be"),
        ({"nodes": 0}, "--nodes=0: must be at least 1"),
        ({"max_restarts": -1}, "--max-restarts=-1: must be at least 0"),
        ({"env": (("a b", "c"),)}, "--env=a b=…: must be NAME=VALUE"),
        ({"env": (("TF_CONFIG", "{}"),)}, "--env=TF_CONFIG=…: is set by the launcher"),
        ({"args": ("a\0b",)}, r"'a\x00b': holds a zero byte"),
        ({"args": ("a\udc80",)}, r"'a\udc80': is no text in UTF-8"),
        ({"args": ("--strategy=mirrored",)}, "--nodes=2: --strategy=mirrored is of one process"),
        ({"args": ("--strategy", "tpu")}, "--nodes=2: --strategy=tpu is of one process"),
        ({"args": ("--api_key=abc",)}, "--api_key=…: looks like a secret"),
        ({"args": ("--token", "abc")}, "--token=…: looks like a secret"),
        ({"args": ("--set", "x.token=hunter2")}, "x.token=…: looks like a secret"),
        ({"args": ("--set=x.password=hunter2",)}, "--set=x.password=…: looks like a secret"),
        ({"env": (("PGPASSWORD", "x"),)}, "--env=PGPASSWORD=…: looks like a secret"),
        ({"options": local.Options("https://u:p@ss@h")}, "--python=…: looks like a secret"),
        ({"env": (("LAUNCH_HOME", "x"),)}, "--env=LAUNCH_HOME=…: is set by the launcher"),
        ({"args": ("--a", "--", "--b")}, "--: stands among the trainer's flags"),
        ({"args": ("--x=ghp_0123456789abcdefghijABCDEFGHIJ",)}, "--x=…: looks like a secret"),
        ({"env": (("WANDB_API_KEY", "x"),)}, "--env=WANDB_API_KEY=…: looks like a secret"),
        ({"env": (("A", "https://me:pw@host/x"),)}, "--env=A=…: looks like a secret"),
    ],
)
def test_what_cannot_be_launched_is_named(values, expected):
    with pytest.raises(LaunchError) as caught:
        spec(**values)
    assert str(caught.value).startswith(expected)


def test_what_only_sounds_like_a_secret_is_none():
    args = ("--max_tokens=3", "--set=monkey=1", "--keyboard=x", "--config=my keys/a.py")
    assert spec(args=args, nodes=1).args == args


def test_secrets_are_not_shown():
    for secret in ("ya29.abc-DEF", "Bearer abc.def", "hf_abcdefghijklmnopqrstuvwx"):
        assert redacted(f"a {secret} b") == "a [secret] b"
    assert redacted("https://me:pass@host/x") == "https://[secret]@host/x"


def test_the_workdir_is_one_flag_wherever_it_stands():
    split = spec_lib.split_workdir
    assert split(["--a", "--workdir=x y", "b"]) == (("--a", "b"), "x y")
    assert split(["--workdir", "x", "--b"]) == (("--b",), "x")
    assert split(["--workdir=x", "-workdir=y"]) == ((), "y")  # absl: the last one
    for empty in (["--workdir="], ["--workdir"]):
        with pytest.raises(LaunchError, match="--workdir=: must name a folder"):
            split(empty)


_texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(
    st.lists(_texts, max_size=4), _texts, st.dictionaries(st.from_regex(r"\AX[A-Z]{1,8}\Z"), _texts)
)
def test_a_spec_survives_json(args, folder, env):
    try:
        one = spec(args=tuple(args), folder=folder, env=tuple(env.items()), nodes=1)
    except LaunchError:  # what looks like a secret
        return
    text = json.dumps(spec_lib.to_dict(one))
    assert spec_lib.from_dict(json.loads(text), local.Options) == one


def test_the_golden_file_of_a_group_here(home, monkeypatch):
    fixed = {"record_dir": "/home/me/launch/digits", "env": (("A", "b 'c' $(d)"),)}
    check_golden(
        "local", local.render(spec(args=("--strategy=multi_worker", "--set=a=b c"), **fixed))
    )


# The records.


def test_a_record_is_private_and_comes_back(home):
    record = made()
    record.set_state(State.RUNNING, "with Bearer abc")
    record.restarts.attempt, record.handle = 3, {"job": "7"}
    record.save()
    again = records.read("digits")
    assert again == record
    assert again.message == "with [secret]"
    for path in (home, *home.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert records.names() == ["digits"]


def test_a_name_is_taken_until_its_run_has_ended(home):
    first = made()
    with pytest.raises(LaunchError, match="--name=digits: belongs to a run that is queued"):
        made()
    first.set_state(State.FAILED)
    with (
        first.locked() as mine,
        pytest.raises(LaunchError, match="belongs to a run that is failed"),
    ):
        assert mine
        made()  # somebody is about to write to it
    made()
    assert records.read("digits").state is State.QUEUED
    assert sorted(path.name for path in home.iterdir()) == ["digits"]  # nothing ran: nothing kept
    again = records.read("digits")
    again.was_running = True
    again.set_state(State.FAILED)
    with records.create(spec()) as record:
        assert record.handle["before"] == again.spec.run != record.spec.run
    assert sorted(path.name for path in home.iterdir()) == ["digits", "digits~1"]


def test_of_two_at_once_one_has_the_name(home):
    code = (
        "import sys, json\nfrom launch import records, spec\nfrom launch.backends import local\n"
        "one = spec.from_dict(json.loads(sys.argv[1]), local.Options)\nsys.stdin.read()\n"
        "try:\n    with records.create(one):\n        pass\n"
        "except records.LaunchError:\n    sys.exit(2)\n"
    )
    text = json.dumps(spec_lib.to_dict(spec()))
    command = [sys.executable, "-c", code, text]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT) for _ in range(4)]
    for process in both:
        assert process.stdin is not None
        process.stdin.close()  # now
    assert sorted(process.wait() for process in both) == [0, 2, 2, 2]
    assert records.read("digits").spec.name == "digits"
    assert [path.name for path in home.iterdir()] == ["digits"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 99}', '"x"'])
def test_a_record_that_cannot_be_read_is_named_and_kept(home, text, capsys):
    made()
    path = home / "digits" / "record.json"
    path.write_text(text)
    assert cli.main(["watch", "digits"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: cannot be read (")
    assert path.read_text() == text


def test_a_broken_record_does_not_hide_the_others(home, capsys):
    made()
    (home / "other").mkdir()
    (home / "other" / "record.json").write_text("{")
    for command in ("list", "status"):
        assert cli.main([command, "--json"]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert rows["digits"]["state"] == "queued"
        assert rows["other"]["state"] == "unknown"
        assert "cannot be read" in rows["other"]["message"]


def test_the_home_has_one_name(home, tmp_path, monkeypatch):
    home.mkdir()
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path / "link"))
    assert records.home() == home


def test_a_full_disk_is_one_line(home, capsys):
    made()
    (home / "file").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAUNCH_HOME", str(home / "file"))
        assert cli.main(["list"]) == 0
        assert cli.main(["submit", "--backend=local", "--name=a"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {home}/file/a: the run's record cannot be written (")


def test_a_crash_while_writing_leaves_the_old_record(home, monkeypatch):
    record = made()

    def crash(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        record.set_state(State.RUNNING)
    assert records.read("digits").state is State.QUEUED


# The state machine, with a job that plays what a back end would see; the clock is its own.


class Clock:
    """launch.signals.Signals without time passing; acts when it comes to a moment."""

    def __init__(self):
        self.received: list[int] = []
        self.time = 0.0

    def wait(self, seconds, others=()):
        self.time += seconds
        return []

    def now(self):
        return self.time

    hurry = False


class Played:
    """A back end that shows one observation after the other, and notes what is asked of it."""

    ends_with_watch = False
    poll_s, backoff_s = 1.0, 10.0

    def __init__(self, shows, restarts_itself=False, on_look: Callable[[int], None] | None = None):
        self._shows, self.restarts_itself = list(shows), restarts_itself
        self._on_look = on_look
        self.asked: list[str] = []
        self.mark = ""

    def observe(self):
        seen = self._shows.pop(0)
        if self._on_look:
            self._on_look(len(self._shows))
        return seen

    def create(self, attempt):
        self.asked.append(f"create {attempt}")

    def delete(self):
        self.asked.append("delete")

    def progress(self):
        return self.mark


QUEUED, RUNNING = Observation(State.QUEUED), Observation(State.RUNNING)
PREEMPTED, GONE = Observation(State.PREEMPTED), Observation(State.UNKNOWN, gone=True)
UNKNOWN, DONE = Observation(State.UNKNOWN), Observation(State.SUCCEEDED, 0)


def ended(code: int | None) -> Observation:
    return Observation(State.FAILED, code, message="why")


@pytest.mark.parametrize(
    ("shows", "asked", "state", "code"),
    [
        ([QUEUED, RUNNING, DONE], ["delete"], "succeeded", 0),
        ([RUNNING, ended(2)], ["delete"], "failed", 2),
        ([RUNNING, ended(43)], ["delete"], "failed", 43),
        ([RUNNING, ended(137), RUNNING, DONE], ["delete", "create 1", "delete"], "succeeded", 0),
        ([RUNNING, PREEMPTED, QUEUED, DONE], ["delete", "create 1", "delete"], "succeeded", 0),
        # Preempted before it ever ran: no fault of the config.
        ([QUEUED, PREEMPTED, DONE], ["delete", "create 1", "delete"], "succeeded", 0),
        # A failure without a code: the config's or a quota's before it ran, the machine's after.
        ([QUEUED, ended(None)], ["delete"], "failed", 1),
        ([RUNNING, ended(None), DONE], ["delete", "create 1", "delete"], "succeeded", 0),
        # One look, or two, is no proof; nor is any number that sees nothing.
        ([RUNNING, GONE, GONE, RUNNING, DONE], ["delete"], "succeeded", 0),
        ([RUNNING, GONE, GONE, GONE, DONE], ["delete", "create 1", "delete"], "succeeded", 0),
        ([RUNNING, *[UNKNOWN] * 50, DONE], ["delete"], "succeeded", 0),
        ([RUNNING, Observation(State.CANCELLED)], ["delete"], "cancelled", 130),
    ],
)
def test_what_is_seen_and_what_follows(shows, asked, state, code):
    record, job = made(), Played(shows)
    assert watch_lib.watch(record, job, Clock(), lambda text: None) == code
    assert job.asked == asked
    assert records.read("digits").state == state


@pytest.mark.parametrize(
    ("shows", "state", "code"),
    [
        ([RUNNING, PREEMPTED, QUEUED, RUNNING, DONE], "succeeded", 0),
        ([RUNNING, ended(137)], "failed", 137),
        ([RUNNING, GONE, GONE, GONE], "failed", 1),
        ([RUNNING, ended(42)], "failed", 1),  # 42 would say: start me again
    ],
)
def test_who_restarts_itself_is_only_looked_at(shows, state, code):
    record, job = made(), Played(shows, restarts_itself=True)
    assert watch_lib.watch(record, job, Clock(), lambda text: None) == code
    assert job.asked == []
    assert records.read("digits").state == state


def test_the_pauses_grow_while_nothing_gets_on():
    record, clock = made(), Clock()
    times: list[float] = []
    job = Played([PREEMPTED] * 10)
    job.create = lambda attempt: times.append(clock.time)
    assert watch_lib.watch(record, job, clock, lambda text: None) == 1
    assert len(times) == MAX_WITHOUT_PROGRESS - 1
    pauses = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    for number, pause in enumerate(pauses):  # each has a second between two looks
        assert 10 * 2 ** (number + 1) * 0.5 <= pause <= 10 * 2 ** (number + 1) + 1


def test_nothing_is_made_after_a_cancel():
    record = made()
    job = Played([RUNNING, PREEMPTED], on_look=lambda left: None if left else record.cancel())
    assert watch_lib.watch(record, job, Clock(), lambda text: None) == 130
    assert set(job.asked) == {"delete"}
    assert records.read("digits").state is State.CANCELLED


def test_ctrl_c_leaves_the_run_alone_and_says_so():
    record, clock, said = made(), Clock(), []
    job = Played([RUNNING, RUNNING], on_look=lambda left: left or clock.received.append(2))
    assert watch_lib.watch(record, job, clock, said.append) == 130
    assert job.asked == []
    assert said[-1].startswith("the run goes on; `python -m launch watch digits` follows it")
    assert records.read("digits").state is State.RUNNING


# The command.


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["submt"], "argument COMMAND: invalid choice: 'submt'"),
        (["submit"], "the following arguments are required: --backend, --name"),
        (["submit", "--backend=slrm", "--name=a"], "--backend=slrm: unknown; one of local, slurm,"),
        (["submit", "--backend=local", "--name=a", "--nodes=x"], "argument --nodes: invalid int"),
        (
            ["submit", "--backend=local", "--name=a", "--nods=2"],
            "--nods: unknown; did you mean --nodes?",
        ),
        (
            ["submit", "--backend=local", "--name=a", "--grce-s=2"],
            "--grce-s: unknown; did you mean",
        ),
        (["submit", "--backend=local", "--name=a", "--partition=x"], "--partition: unknown ("),
        (["submit", "--backend=local", "--name=a", "--strategy=tpu"], "--strategy: unknown ("),
        (["submit", "--backend=local", "--name=a", "--env=A"], "--env=A: must be NAME=VALUE"),
        (["submit", "--backend=local", "--name=a", "--folder=/no"], "--folder=/no: is no folder"),
        (["submit", "--backend=local", "--name=a", "--", "--workdir="], "--workdir=: must name"),
        (["watch", "../x"], "'../x': is no name of a run"),
        (["watch", ""], "'': is no name of a run"),
        (
            ["submit", "--backend=slurm", "--name=a", "--sbatch", "--x"],
            "argument --sbatch: expected",
        ),
        (["watch", "nobody"], "nobody: there is no such run in "),
        (["watch"], "the following arguments are required: NAME"),
        (["list", "--", "--strategy=tpu"], "--strategy=tpu: only `submit` takes the trainer's"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(home, arguments, expected, capsys):
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith(f"error: {expected}")
    assert output.out == ""
    assert not home.exists() or not list(home.iterdir())


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_help_shows_the_flags_of_the_back_end(backend, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["submit", f"--backend={backend}", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(backends.load(backend).Options):
        assert f"--{field.name.replace('_', '-')}" in shown


def test_a_dry_run_makes_nothing_and_is_the_same_each_time(home, capsys):
    arguments = ["submit", "--backend=local", "--name=a", "--nodes=2", "--dry-run"]
    shown = []
    for _ in range(2):
        assert cli.main([*arguments, "--", "--set=a= b"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert not home.exists()
    assert cli.main([*arguments, "--json", "--", "--set=a= b"]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert "".join(f"--- {d['title']}\n{d['text']}" for d in documents) == shown[0]


def test_what_was_sent_is_shown_later(home, capsys):
    made()
    assert cli.main(["render", "digits"]) == 0
    assert capsys.readouterr().out.startswith("--- worker 0\ncd /home/me/trainer\n")


def test_a_name_is_data_for_every_back_end():
    """All of them are one file and one line; none is missing what the interface names."""
    for name in backends.BACKENDS:
        module = backends.load(name)
        assert dataclasses.is_dataclass(module.Options)
        for attribute in ("check", "render", "Job"):
            assert callable(getattr(module, attribute))
        tree = ast.parse(Path(module.__file__ or "").read_text())
        assert ast.get_docstring(tree)
