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
    assert "\noptimizer.learning_rate = 0.4\n    a number, above 0\n" in result.stdout
    message = only_line(run_main("--set=sed=7", "--print_config", pythonpath=stubs, verb=verb))
    assert message == "sed: unknown field; did you mean 'seed'?"


def test_help_survives_a_reader_that_stops_early(stubs):
    command = f"set -o pipefail; {sys.executable} -m trainer.main --help_config | true"
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(stubs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


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
