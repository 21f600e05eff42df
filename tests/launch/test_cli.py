"""The command: mistakes in one line, help, dry runs."""

import ast
import dataclasses
import json
from pathlib import Path

import pytest

from launch import backends, cli
from tests.launch.specs import made


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["submt"], "submt: unknown command; did you mean submit?"),
        (["stop", "digits"], "stop: unknown command; did you mean cancel?"),
        (["xyzzy"], "xyzzy: unknown command; one of submit, watch, status, logs, cancel, list,"),
        (["list", "digits"], "digits: one word too many ("),
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
        (["submit", "--backend=local", "--name=a", "--folder=/no"], "--folder=/no: not a folder"),
        (["submit", "--backend=local", "--name=a", "--", "--workdir="], "--workdir=: must name"),
        (["watch", "../x"], "'../x': no such run in "),
        (["watch", ""], "'': no such run in "),
        (
            ["submit", "--backend=slurm", "--name=a", "--sbatch", "--x"],
            "argument --sbatch: expected",
        ),
        (["watch", "nobody"], "'nobody': no such run in "),
        (["status", "nobody"], "'nobody': no such run in "),
        (["watch"], "the following arguments are required: NAME"),
        (["list", "--", "--strategy=tpu"], "--strategy=tpu: only `submit` takes trainer flags"),
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


def test_a_dry_run_creates_nothing_and_is_the_same_each_time(home, capsys):
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


@pytest.mark.parametrize("command", ["status", "watch", "logs", "cancel", "render"])
def test_an_unknown_run_names_those_that_there_are(home, capsys, command):
    made()
    for name, hint in (("digitz", "did you mean digits?"), ("x", "there are digits")):
        assert cli.main([command, name]) == 2
        output = capsys.readouterr()
        assert output == ("", f"error: {name!r}: no such run in {home}; {hint}\n")
    assert cli.main(["status", "digits", "x"]) == 2
    assert capsys.readouterr().out == ""


def test_many_runs_are_not_all_named(home, capsys):
    for number in range(7):
        (home / f"run-{number}").mkdir(parents=True)
        (home / f"run-{number}" / "record.json").touch()
    assert cli.main(["status", "x"]) == 2
    assert capsys.readouterr().err == (
        f"error: 'x': no such run in {home}; there are run-0, run-1, run-2, run-3, run-4 and 2 "
        f"more; `python -m launch list` lists all\n"
    )


def test_render_shows_later_what_was_sent(home, capsys):
    made()
    assert cli.main(["render", "digits"]) == 0
    assert capsys.readouterr().out.startswith("--- worker 0\ncd /home/me/trainer\n")


def test_a_name_is_data_for_every_back_end():
    """Each has the attributes that the interface names."""
    for name in backends.BACKENDS:
        module = backends.load(name)
        assert dataclasses.is_dataclass(module.Options)
        for attribute in ("check", "render", "Job"):
            assert callable(getattr(module, attribute))
        tree = ast.parse(Path(module.__file__ or "").read_text())
        assert ast.get_docstring(tree)
