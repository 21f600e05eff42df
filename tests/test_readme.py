"""What README.md and BUILD.md tell a user to type: every command parses, every file is there."""

import copy
import os
import re
import shlex
from pathlib import Path

import pytest
from absl import flags

from launch import cli
from trainer import config as config_lib
from trainer import inspect, main
from trainer.errors import UserError
from trainer.preflight import __main__ as preflight
from trainer.preflight.slices import parse_slice
from trainer.registry import MODELS

_ROOT = Path(__file__).parent.parent
_DOCUMENTS = [_ROOT / "README.md", _ROOT / "BUILD.md", _ROOT / "docs" / "launch.md"]


def _commands() -> list[str]:
    commands = []
    for document in _DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", document.read_text(), re.DOTALL):
            commands += block.replace("\\\n", " ").splitlines()
    return [command.strip() for command in commands if command.strip()]


def _words(command: str) -> list[str]:
    words = shlex.split(command, comments=True)
    return words[: words.index("&")] if "&" in words else words


VERBS = {"main": main, "inspect": inspect, "preflight": preflight}


@pytest.mark.parametrize("command", [c for c in _commands() if re.search(r"-m trainer\.\w", c)])
def test_every_command_parses(command):
    words = _words(command)
    module = words[words.index("-m") + 1]
    arguments = words[words.index(module) + 1 :]
    if module in ("trainer.prepare", "trainer.export"):  # which have flags of one name
        text = (_ROOT / f"{module.replace('.', '/')}.py").read_text()
        known = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"|declare_key_flag\("(\w+)"', text))
        names = {name for pair in known for name in pair if name}
        assert {word.partition("=")[0].lstrip("-") for word in arguments} <= names
        return
    assert module.removeprefix("trainer.") in VERBS
    values = flags.FlagValues()
    for name in (VERBS[module.removeprefix("trainer.")].__name__, "trainer.cli.flags"):
        for flag in flags.FLAGS.flags_by_module_dict()[name]:
            values[flag.name] = flags.FLAGS[flag.name]
    saved = {name: values[name].value for name in values}
    try:
        assert values([module, *inspect._joined(arguments)]) == [module]
        if module == "trainer.main":
            assert values["strategy"].value in main.STRATEGIES
            path = _ROOT / values["config"].value
            config_lib.override(config_lib.load(str(path)), values["set"].value)
        if module == "trainer.preflight":
            parse_slice(values["tpu"].value)
            config_lib.override(config_lib.load(values["config"].value), values["set"].value)
        if module == "trainer.inspect":
            config_lib.override(config_lib.Config(), values["set"].value)
            for name in values["diff"].value or [values["model"].value]:
                assert name in MODELS
    finally:
        for name, value in saved.items():
            values[name].value = value


@pytest.mark.parametrize("command", [c for c in _commands() if "-m launch " in c])
def test_every_launch_is_one_that_can_be_submitted(command, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path))
    words = [
        word.replace("$PROJECT", "my-project").replace("$ZONE", "z-1") for word in _words(command)
    ]
    arguments = words[words.index("launch") + 1 :]
    if arguments[0] == "submit":
        if "--dry-run" not in arguments:
            arguments.insert(1, "--dry-run")
        arguments = [word.replace("REGISTRY", "registry") for word in arguments]
        assert cli.main(arguments) == 0, capsys.readouterr().err
        trainer = arguments[arguments.index("--") + 1 :]
        values = flags.FlagValues()
        for name in ("trainer.main", "trainer.cli.flags"):
            for flag in flags.FLAGS.flags_by_module_dict()[name]:
                values[flag.name] = copy.deepcopy(flags.FLAGS[flag.name])
        assert values(["main", *trainer]) == ["main"]
    else:
        assert cli._parse(arguments).command == arguments[0]


def test_every_make_target_is_there():
    targets = set(re.findall(r"^([a-z0-9-]+):", (_ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {
        word
        for document in _DOCUMENTS
        for call in re.findall(r"`make ([^`]*)`|^make (.*)$", document.read_text(), re.MULTILINE)
        for word in shlex.split(call[0] or call[1])
        if "=" not in word
    }
    assert {"train", "test", "test-slow", "check"} <= used <= targets


def test_every_link_and_named_file_is_there():
    for document in _DOCUMENTS:
        text = document.read_text()
        links = re.findall(r"\]\(([^)#:]+)\)", text)
        names = [os.path.relpath(document.parent / link, _ROOT) for link in links]
        names += re.findall(r"`((?:trainer|configs|tests|benchmarks|docs)/[\w/.-]+)`", text)
        missing = [name for name in names if not (_ROOT / name).exists()]
        assert not missing, (document.name, missing)


def test_the_set_options_and_fields_of_the_readme_exist():
    known = config_lib.to_dict(config_lib.Config())
    text = (_ROOT / "README.md").read_text()
    for path in re.findall(r"--set[ =]([a-z_.0-9]+)=", text):
        assert path in known
    fields = text.partition("The fields that matter most")[2].partition("The rest")[0]
    for name in re.findall(r"`([a-z_.]+)`", fields):
        values = {"float32", "auto"}
        assert name in known or name in values or any(k.startswith(name) for k in known), name


def test_the_example_error_is_the_real_one():
    with pytest.raises(UserError) as caught:
        config_lib.override(config_lib.Config(), ["optimizer.learning_rte=0.1"])
    assert f"error: {caught.value}\n" in (_ROOT / "README.md").read_text()
