"""The flags of all verbs, their output, and exit codes."""

import copy
import os
import re
import subprocess
import sys

import pytest
from absl import flags

from tests.verb_runs import ROOT, only_line, run_main
from trainer import export, inspect, main, prepare
from trainer.cli import command
from trainer.config import Config, load, override
from trainer.errors import DivergedError, GroupError, PreemptedError, UserError
from trainer.preflight import __main__ as preflight

VERBS = {
    "trainer.main": main,
    "trainer.inspect": inspect,
    "trainer.prepare": prepare,
    "trainer.export": export,
    "trainer.preflight": preflight,
}


@pytest.mark.parametrize("verb", VERBS)
def test_help_lists_the_verb_s_flags(stubs, verb):
    result = run_main("-h" if verb == "trainer.main" else "--help", pythonpath=stubs, verb=verb)
    assert (result.returncode, result.stderr) == (0, "")
    listed = re.findall(r"^  --(?:\[no\])?(\w+)", result.stdout, re.MULTILINE)
    assert listed == sorted([*VERBS[verb].FLAGS, "verbosity"])
    assert max(len(line) for line in result.stdout.partition("  --")[2].splitlines()) <= 80
    if verb == "trainer.main":
        expected = {"config", "set", "strategy", "tpu", "workdir", "data_dir", "virtual_devices"}
        assert expected <= set(listed)
        everything = run_main("--helpfull", pythonpath=stubs)
        found = set(re.findall(r"--(?:\[no\])?(\w+)", everything.stdout))
        assert {*listed, "pdb"} <= found
        assert {"only_check_flags", "only_check_args"} & found == set()


def test_help_has_none_of_absl_s_texts(stubs):
    text = run_main("--help", pythonpath=stubs, verb="trainer.inspect").stdout
    assert "\n    python -m trainer.inspect --diff" in text  # an example, indented
    assert "\n      Output format. Values: table, md, json.\n" in text
    assert "\n      FIELD=VALUE sets a field" in text
    assert "\n      0 shows the libraries' own output" in text
    assert [part for part in ("|", "repeat this option", "included") if part in text] == []


@pytest.mark.parametrize(
    ("verb", "flag"),
    [
        (verb, flag)
        for verb, module in VERBS.items()
        for flag in sorted({f for m in VERBS.values() for f in m.FLAGS} - set(module.FLAGS))
    ],
)
def test_a_verb_refuses_the_flags_of_others(capsys, verb, flag):
    with pytest.raises(SystemExit) as caught:
        command.run(verb, lambda: 0, copy.deepcopy(VERBS[verb].FLAGS), [verb, f"--{flag}=1"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: --{flag}: not a flag of {verb}; ")


def test_every_verb_has_absl_s_flags():
    own = flags.FlagValues()
    with pytest.raises(SystemExit) as caught:
        command.run("trainer.verb", lambda: 7, own, ["verb", "--verbosity=0", "--nopdb"])
    assert caught.value.code == 7
    assert len(own) == 0


@pytest.mark.parametrize("verb", [verb for verb, module in VERBS.items() if "set" in module.FLAGS])
def test_the_config_is_printed_before_a_verb_begins(stubs, tmp_path, verb):
    recipe = str(ROOT / "configs" / "imagenet_resnet50.py")
    arguments = [f"--config={recipe}", "--set=seed=7"]
    result = run_main(*arguments, "--print_config", pythonpath=stubs, verb=verb)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line for line in result.stdout.splitlines() if line and not line.startswith("#")]
    assert override(Config(), lines) == override(load(recipe), ["seed=7"])
    result = run_main(*arguments, "--help_config", pythonpath=stubs, verb=verb)
    assert (result.returncode, result.stderr) == (0, "")
    assert "\noptimizer.learning_rate = 0.1 (here 0.4)\n    a number, above 0\n" in result.stdout
    assert "\nseed = 0 (here 7)\n" in result.stdout
    message = only_line(run_main("--set=sed=7", "--print_config", pythonpath=stubs, verb=verb))
    assert message == "sed: unknown field; did you mean --set seed=7?"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("end", "code"),
    [("return 0", 0), ("raise UserError('x')", 2), ("command.print_and_exit('x')", 0)],
)
def test_a_command_outlives_its_reader(tmp_path, unbuffered, end, code):
    """As in `| head`: it does its work and exits with its own code, and writes no traceback."""
    program = f"""
import sys
from pathlib import Path
from absl import flags
from trainer.cli import command
from trainer.errors import UserError

def verb():
    for _ in range(2):
        print("line", flush=True)
        print("line" * 10_000)
        print("line", file=sys.stderr)
    Path({str(tmp_path / "done")!r}).touch()
    {end}

command.run("trainer.verb", verb, flags.FlagValues(), ["program"])
"""
    errors = tmp_path / "errors"
    for merged in (False, True):  # `2>&1 | head`
        reader, writer = os.pipe()
        os.close(reader)
        with errors.open("w") as file:
            result = subprocess.run(
                [sys.executable, "-c", program],
                cwd=ROOT,
                env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
                stdout=writer,
                stderr=writer if merged else file,
                check=False,
            )
        os.close(writer)
        assert result.returncode == code
        (tmp_path / "done").unlink()
        expected = ["line", "line"] + (["error: x"] if code else [])
        assert errors.read_text().splitlines() == ([] if merged else expected)


def test_output_that_is_read_comes_whole_and_at_once():
    """Before the command ends, and even a name that is not valid text."""
    program = (
        "import sys; from absl import flags; from trainer.cli import command\n"
        "def verb():\n"
        "    print('\\udcff', 'é' * 100_000, end='.'); sys.stdout.flush(); input(); return 7\n"
        "command.run('trainer.verb', verb, flags.FlagValues(), ['program'])"
    )
    expected = "\\udcff " + "é" * 100_000 + "."
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.read(len(expected)) == expected
        assert process.communicate("\n") == ("", None)
    assert process.returncode == 7


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (UserError("a mistake"), 2),
        (GroupError("a worker is missing"), 200),
        (PreemptedError("saved"), 42),
        (DivergedError("step 3"), 43),
        (KeyboardInterrupt(), 130),
        (ValueError("a bug"), None),
    ],
)
def test_exit_codes(error, code):
    def verb() -> int:
        if error is not None:
            raise error
        return 0

    with pytest.raises(SystemExit if code is not None else ValueError) as caught:
        command.run("trainer.verb", verb, flags.FlagValues(), ["program"])
    if code is not None:
        assert caught.value.code == code
