"""What README.md and BUILD.md tell a user to type: every command parses, every file is there."""

import copy
import os
import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from launch import cli
from tests.conftest import strategy_of
from tests.step_runs import Run
from trainer import config as config_lib
from trainer import export, inspect, main, prepare
from trainer.devices.choice import STRATEGIES
from trainer.errors import UserError
from trainer.insight.anatomy import anatomy
from trainer.models.weights.load import torch_tensors
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


VERBS = {
    "main": main,
    "inspect": inspect,
    "prepare": prepare,
    "export": export,
    "preflight": preflight,
}


@pytest.mark.parametrize("command", [c for c in _commands() if re.search(r"-m trainer\.\w", c)])
def test_every_command_parses(command):
    words = _words(command)
    module = words[words.index("-m") + 1]
    arguments = words[words.index(module) + 1 :]
    values = copy.deepcopy(VERBS[module.removeprefix("trainer.")].FLAGS)
    assert values([module, *inspect._joined(arguments)]) == [module]
    if module == "trainer.main":
        assert values["strategy"].value in STRATEGIES
        path = _ROOT / values["config"].value
        config_lib.override(config_lib.load(str(path)), values["set"].value)
    if module == "trainer.preflight":
        parse_slice(values["tpu"].value)
        config_lib.override(config_lib.load(values["config"].value), values["set"].value)
    if module == "trainer.inspect":
        config_lib.override(config_lib.Config(), values["set"].value)
        for name in values["diff"].value or [values["model"].value]:
            assert name in MODELS


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
        values = copy.deepcopy(main.FLAGS)
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


def test_the_example_of_a_model_trains_and_is_looked_into(digits_config, digits, monkeypatch):
    """The text of the README as the file it says it is, and its line."""
    text = (_ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ((name, path),) = re.findall(r'`"(tinynet)": "([a-z.]+)",`', text)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    assert code.startswith(f'"""{path.replace(".", "/")}.py"""')
    module = types.ModuleType(path)
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, path, module)
    monkeypatch.setitem(MODELS, name, path)
    settings = ["model.name=tinynet", "model.freeze=stage1", "optimizer.warmup_epochs=0"]
    config = config_lib.override(digits_config, settings)
    run = Run(config, digits, strategy_of(2))
    frozen = run.state.model.block1.conv.kernel.numpy()
    loss = run.train(30).loss
    assert loss[-5:].mean() < 0.9 * loss[:5].mean()
    assert (run.state.model.block1.conv.kernel.numpy() == frozen).all()
    rows = anatomy(run.state.model, config.data.image_size, channels=1)
    assert [row.stage for row in rows] == ["stage1", "stage2", "head", "head"]
    assert "stage1_block.conv.weight" in torch_tensors(config, run.state.model)
