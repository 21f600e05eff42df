"""A run's history: each start and end, and what `python -m trainer.runs` tells of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags as absl_flags

from tests.verb_runs import only_line, run_main
from trainer import runs
from trainer.config import Config
from trainer.data.splits.split import Split
from trainer.errors import DivergedError, GroupError, PreemptedError, UserError
from trainer.run import environment
from trainer.run.folder import RunFolder
from trainer.run.history import FILE, History, read_history, recorded
from trainer.run.identity import run_metadata
from trainer.run.provenance import describe_run

TRAIN = Split("train", "/data/train", "f00d", 1200, ("cat", "dog"), (700, 500), 3, None, None)


def begin(path: Path) -> RunFolder:
    """Returns the folder of a run that an earlier process has left."""
    folder = RunFolder(str(path), Config())
    folder.write_config(run_metadata(Config(), TRAIN, None))
    folder._locks.close()
    return RunFolder(str(path), Config())


def ends(path: Path) -> list[tuple[str, int]]:
    events = read_history(path)
    return [(one["reason"], one["exit_code"]) for one in events if one["kind"] == "end"]


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (None, "done", 0),
        (PreemptedError("saved at step 3 of 9"), "stopped by a signal: saved at step 3 of 9", 42),
        (DivergedError("step 3:\n the loss"), "diverged: step 3: the loss", 43),
        (GroupError("gone"), "the group broke: gone", 200),
        (UserError("bad example"), "error: bad example", 2),
        (KeyboardInterrupt(), "Ctrl-C", 130),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero", 1),
    ],
)
def test_every_end_is_recorded_with_its_reason(tmp_path, error, reason, code):
    folder = begin(tmp_path)

    def run() -> None:
        with recorded(folder, "configs/digits_resnet20.py"):
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    assert ends(tmp_path) == [(reason, code)]


def test_an_error_before_the_run_begins_leaves_nothing(tmp_path):
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs" / "a" / "b"
    with pytest.raises(UserError), recorded(RunFolder(str(path), Config()), "c.py"):
        assert [event["kind"] for event in read_history(path)] == ["start"]
        raise UserError("no such data")
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_error_after_the_first_step_leaves_the_run(tmp_path):
    folder = RunFolder(str(tmp_path / "run"), Config())
    with pytest.raises(UserError), recorded(folder, "c.py"):
        folder.write_config(run_metadata(Config(), TRAIN, None))
        folder.metrics.write_text('{"kind": "train", "step": 1}\n')
        raise UserError("bad example")
    assert ends(tmp_path / "run") == [("error: bad example", 2)]


def test_an_error_before_it_removes_all_that_the_run_has_written(tmp_path):
    folder = RunFolder(str(tmp_path / "run"), Config())
    with pytest.raises(UserError), recorded(folder, "c.py"):
        folder.write_config(run_metadata(Config(), TRAIN, None))
        (folder.path / "train").mkdir()
        folder.metrics.write_text('{"kind": "startup", "step": 0}\n')
        raise UserError("out of memory")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_images_named_as_workdir_keeps_them(tmp_path):
    image = tmp_path / "train" / "cat" / "1.jpg"
    image.parent.mkdir(parents=True)
    image.touch()
    folder = RunFolder(str(tmp_path), Config())
    with pytest.raises(UserError), recorded(folder, "c.py"):
        folder.write_config(run_metadata(Config(), TRAIN, None))
        raise UserError("no such data")
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
    assert image.exists()


def test_an_error_removes_no_file_of_a_run_s_name_that_was_there(tmp_path):
    for name in ("history.jsonl", "metrics.jsonl"):
        (tmp_path / name).write_text("mine\n")
    (tmp_path / "eval").mkdir()
    with pytest.raises(UserError), recorded(RunFolder(str(tmp_path), Config()), "c.py"):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "ckpt-0.index").touch()
        (tmp_path / "train").mkdir()
        raise UserError("out of memory")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["eval", "history.jsonl", "metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_text() == "mine\n"
    assert (tmp_path / "history.jsonl").read_text().startswith("mine\n")
    assert ends(tmp_path) == [("error: out of memory", 2)]


def test_a_history_that_cannot_be_written_hides_no_error(tmp_path, capsys):
    folder = begin(tmp_path)
    (tmp_path / FILE).mkdir()
    with pytest.raises(UserError, match="bad example"), recorded(folder, "c.py"):
        raise UserError("bad example")
    assert capsys.readouterr().err == (
        f"warning: {tmp_path / FILE}: cannot be written (Is a directory)\n"
    )


def test_another_worker_removes_nothing(tmp_path):
    begin(tmp_path / "run")
    with (
        pytest.raises(UserError),
        recorded(RunFolder(str(tmp_path / "run"), Config(), is_chief=False), "c.py"),
    ):
        raise UserError("no such data")
    assert (tmp_path / "run" / "config.json").exists()


def test_an_error_leaves_what_others_put_into_the_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError), recorded(RunFolder(str(tmp_path), Config()), "c.py"):
        raise UserError("no such data")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_kill_during_a_write_costs_one_line(tmp_path):
    history = History(begin(tmp_path))
    history.add("start", {"pid": 1})
    with (tmp_path / FILE).open("a") as file:
        file.write('{"kind": "end", "ti')
    history.add("start", {"pid": 2})
    assert [event["pid"] for event in read_history(tmp_path)] == [1, 2]


def test_the_text_tells_all_that_the_run_came_from(tmp_path):
    folder = begin(tmp_path)
    config = tmp_path / "recipe.py"
    config.write_text("# values")
    with pytest.raises(PreemptedError), recorded(folder, str(config)):
        raise PreemptedError("saved at step 3 of 9")
    history = History(folder)
    start = read_history(tmp_path)[0]
    history.add("start", {**start, "pid": 77})  # killed
    history.add("start", {**start, "pid": 78})
    records = [
        {"kind": "train", "step": 1, "accuracy": 0.99},
        {"kind": "eval", "step": 2, "top1_accuracy": 0.75, "loss": 0.5},
        {"kind": "eval", "step": 3, "top1_accuracy": 0.75, "loss": 0.25},
    ]
    folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    text = describe_run(tmp_path)
    assert start["config_text"] == "# values"
    for part in (
        f"{tmp_path}: running, or killed, best accuracy 0.7500 at step 3\n",
        f"command   cd {Path.cwd()} && python ",
        f"config    {config}; resolved: {tmp_path / 'config.json'}\n",
        "train: 1,200 images of split train at /data/train, fingerprint f00d\n",
        "eval: none\n",
        "classes   2: cat (700), dog (500)\n",
        "weights   random, by the seed\n",
        f"python {sys.version.split()[0]}",
        "stopped by a signal: saved at step 3 of 9 (exit code 42)\n",
        "no record of its end: it was killed\n",
        "started, process 78",
    ):
        assert part in text
    folder.write_done("best accuracy 0.75")
    assert describe_run(tmp_path).startswith(f"{tmp_path}: done, ")


def test_the_verb_needs_no_tensorflow(tmp_path_factory, tmp_path):
    from tests.verb_runs import write_stubs

    stubs = write_stubs(tmp_path_factory.mktemp("stubs"))
    begin(tmp_path / "runs" / "one")
    path = f"{stubs}:{Path.cwd()}"
    listed = run_main(pythonpath=path, cwd=tmp_path, verb="trainer.runs")
    assert (listed.returncode, listed.stdout) == (0, "runs/one: not done\n")
    shown = run_main("runs/one", pythonpath=path, cwd=tmp_path, verb="trainer.runs")
    assert shown.stdout.startswith("runs/one: not done\n  command   unknown")
    message = only_line(run_main("nope", pythonpath=path, cwd=tmp_path, verb="trainer.runs"))
    assert message.startswith("nope: is not the folder of a run: it has no config.json; ")


@pytest.mark.parametrize("flags", [["R"], ["--run=R"], ["--run", "R"], ["-run", "R"]])
def test_a_run_may_be_named_with_and_without_its_flag(flags):
    program, *words = runs._named(["runs", *flags, "S", "--verbosity=0"])
    known = runs._RUN.name
    assert program == "runs"
    parsed = absl_flags.FlagValues()
    absl_flags.DEFINE_multi_string(known, [], "", flag_values=parsed)
    assert parsed(["runs", *words[:-1]]) == ["runs"]
    assert parsed[known].value == ["R", "S"]


def test_a_folder_that_is_no_run_does_not_hide_the_others(tmp_path):
    begin(tmp_path / "runs" / "good")
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "config.json").write_text("{}")
    listed = subprocess.run(
        [sys.executable, "-m", "trainer.runs"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(runs.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    bad, good = listed.stdout.splitlines()
    assert bad == "runs/bad/config.json: cannot be read ('config')"
    assert good.startswith("runs/good: ")


def test_the_command_is_as_it_was_typed(tmp_path):
    """In a real process: with `python -m`, and as a program next to Python."""
    show = "from trainer.run.environment import command_text\nprint(command_text())\n"
    (tmp_path / "show.py").write_text(show)
    arguments = ["--set", "a b=c", "--data_dir=x"]
    run = subprocess.run(
        [sys.executable, "-m", "show", *arguments],
        env={"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "python -m show --set 'a b=c' --data_dir=x\n"


def test_secrets_of_other_programs_are_not_recorded(monkeypatch):
    for name, value in (("TF_TOKEN_app", "secret"), ("TF_VAR_key", "x"), ("AWS_SECRET_KEY", "x")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    found = environment.environment()["variables"]
    assert found["XLA_FLAGS"] == "--xla_dump_to=x"
    assert not {"TF_TOKEN_app", "TF_VAR_key", "AWS_SECRET_KEY"} & found.keys()


def test_nvidia_s_driver_and_cards_are_read_from_its_files(tmp_path, monkeypatch):
    """A folder stands in for /proc/driver/nvidia: there is no card here."""
    (tmp_path / "gpus" / "0000:0a:00.0").mkdir(parents=True)
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
    )
    information = tmp_path / "gpus" / "0000:0a:00.0" / "information"
    information.write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 20\n")
    monkeypatch.setattr(environment, "_NVIDIA", tmp_path)
    assert environment.versions()["nvidia driver"] == "550.54.15"
    assert environment.machine()["gpus"] == ["NVIDIA H100 80GB HBM3"]
