"""The documentation: every command parses, every named file exists, every Python example runs."""

import ast
import copy
import csv
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tensorflow as tf
from absl import flags

from docs.samples import BLOCK, SAMPLES, excerpt, output
from launch import cli
from tests.conftest import strategy_of
from tests.step_runs import Run
from tests.test_imports import VERBS
from trainer import config as config_lib
from trainer import inspect, runs
from trainer.data.source import open_source
from trainer.devices.choice import STRATEGIES
from trainer.errors import UserError
from trainer.insight.anatomy import anatomy
from trainer.models.weights.names import torch_tensors
from trainer.preflight.slices import parse_slice
from trainer.registry import MODELS

_ROOT = Path(__file__).parents[1]
_PAGES = [
    *(
        _ROOT / name
        for name in ("README.md", "BUILD.md", "CONTRIBUTING.md", "benchmarks/README.md")
    ),
    *sorted((_ROOT / "docs").glob("*.md")),
]
_TEXTS = {str(path.relative_to(_ROOT)): path.read_text(encoding="utf-8") for path in _PAGES}
_GETTING_STARTED = _TEXTS["docs/getting-started.md"]


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def _commands() -> list[list[str]]:
    """Returns the words of every command, up to a comment or `&`."""
    commands = []
    for text in _TEXTS.values():
        for block in _blocks(text, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                try:
                    words = shlex.split(line, comments=True)
                except ValueError:  # a part of a loop or of a document
                    continue
                commands.append(words[: words.index("&")] if "&" in words else words)
    return [words for words in commands if words]


def _after(words: list[str], *start: str) -> list[str] | None:
    """Returns the words after `start`, or None if the command has no such part."""
    for place in range(len(words)):
        if words[place : place + len(start)] == list(start):
            return words[place + len(start) :]
    return None


def _launches() -> list[list[str]]:
    return [rest for words in _commands() if (rest := _after(words, "-m", "launch")) is not None]


def _calls() -> list[list[str]]:
    """Returns the module and arguments of every call of a verb, also those of launched jobs."""
    found = []
    for words in _commands():
        if "-m" in words and words[words.index("-m") + 1].startswith("trainer."):
            found.append(words[words.index("-m") + 1 :])
    submitted = [words for words in _launches() if words[0] == "submit"]
    return found + [["trainer.main", *(_after(words, "--") or [])] for words in submitted]


@pytest.fixture
def user_folder(tmp_path) -> Path:
    """A user's folder: the recipes, and the model and the source of the documentation."""
    (tmp_path / "configs").symlink_to(_ROOT / "configs")
    for page in ("docs/models.md", "docs/data.md"):
        (code,) = _blocks(_TEXTS[page], "python")
        file = tmp_path / code.partition('"""')[2].partition('"""')[0]
        file.parent.mkdir()
        file.write_text(code)
    return tmp_path


def _parse(call: list[str]) -> None:
    """Parses a call with the verb's own flags, and checks what they name.

    Raises:
        flags.Error: for arguments that the verb refuses.
        UserError: for a config, a setting or a slice that does not exist.
    """
    name, *arguments = call
    verb = importlib.import_module(name + ".__main__" * (name == "trainer.preflight"))
    values = copy.deepcopy(verb.FLAGS)
    words = [name, *inspect._joined(arguments)]
    assert values(runs._named(words) if name == "trainer.runs" else words) == [name]
    if "config" in values:
        config_lib.override(config_lib.load(values["config"].value), values["set"].value)
    if name == "trainer.main":
        assert values["strategy"].value in STRATEGIES
    if name == "trainer.inspect":
        assert {one for one in (values["model"].value, *values["diff"].value) if one} <= set(MODELS)
    if name == "trainer.preflight":
        parse_slice(values["tpu"].value)


@pytest.mark.parametrize("call", _calls(), ids=shlex.join)
def test_every_command_parses(call, user_folder, monkeypatch):
    monkeypatch.chdir(user_folder)
    monkeypatch.syspath_prepend(user_folder)
    _parse(call)


def test_commands_of_every_verb_are_found():
    assert {call[0] for call in _calls()} == {f"trainer.{verb}" for verb in VERBS}


@pytest.mark.parametrize(
    "call",
    [
        "main --set=no.such=1",
        "main --no_such",
        "main --strategy=x",
        "main --config=no.py",
        "main --out=x",
        "main positional",
        "export --set=seed=1",
        "inspect --model=x",
        "preflight --tpu=v9:1x1",
    ],
)
def test_a_wrong_command_does_not_parse(call):
    with pytest.raises((UserError, flags.Error, AssertionError)):
        _parse(f"trainer.{call}".split())


@pytest.mark.parametrize("words", _launches(), ids=shlex.join)
def test_every_launch_can_be_submitted(words, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LAUNCH_HOME", str(tmp_path))
    names = {"$PROJECT": "my-project", "$ZONE": "z-1", "REGISTRY": "registry"}
    for name, value in names.items():
        words = [word.replace(name, value) for word in words]
    if words[0] == "submit":
        if "--dry-run" not in words:
            words.insert(1, "--dry-run")
        assert cli.main(words) == 0, capsys.readouterr().err
    else:
        assert cli._parse(words).command == words[0]


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z0-9-]+):", (_ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {
        word
        for text in _TEXTS.values()
        for call in re.findall(r"`make ([^`]*)`|^make (.*)$", text, re.MULTILINE)
        for word in shlex.split(call[0] or call[1])
        if "=" not in word
    }
    assert {"train", "test", "test-slow", "check"} <= used <= targets


def test_every_script_extra_and_benchmark_exists():
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    text = "\n".join(_TEXTS.values())
    scripts = set(re.findall(r"`(trainer-[a-z]+)`", text))
    assert scripts == set(project["scripts"])
    extras = set(re.findall(r"-e \"?\.\[(\w+)\]|`\[(\w+)\]`", text))
    assert {name for pair in extras for name in pair if name} <= set(
        project["optional-dependencies"]
    )
    for name in set(re.findall(r"python -m benchmarks\.([a-z_]+)", text)):
        assert (_ROOT / "benchmarks" / f"{name}.py").exists()


@pytest.mark.parametrize("page", _TEXTS)
def test_every_link_and_named_file_exists(page):
    text, folder = _TEXTS[page], (_ROOT / page).parent
    for link, anchor in re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", text):
        target = (folder / link).resolve() if link else _ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor[1:] in slugs, (link, anchor)
    names = re.findall(
        r"`((?:trainer|configs|tests|benchmarks|docs)/[\w/.-]+|launch/[\w/]+\.py)`", text
    )
    missing = [
        name for name in names if not re.search("[A-Z]{4}", name) and not (_ROOT / name).exists()
    ]
    assert not missing


def test_every_field_exists():
    known = config_lib.to_dict(config_lib.Config())
    sections = {path.rpartition(".")[0] for path in known}
    for page, text in _TEXTS.items():
        for path in re.findall(r"--set[ =]([a-z_.0-9]+)=", text):
            assert path in known, (page, path)
        for path in re.findall(r"`((?:model|data|optimizer|augment)\.[a-z_0-9]+)[=`]", text):
            assert path in known or path in sections, (page, path)


def test_every_sample_is_shown_and_made_by_make_samples():
    pages = _TEXTS.values()
    shown = [name for text in pages for name in re.findall(r"<!-- sample: (.+) -->", text)]
    assert set(shown) == set(SAMPLES)
    assert [name for text in pages for _, name, _, _ in BLOCK.findall(text)] == shown


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if sample.is_exact])
def test_a_sample_is_what_the_command_prints(name, tmp_path):
    """Only those that are the same on every machine; the others have seconds in them."""
    expected = excerpt(output(SAMPLES[name].command, tmp_path), SAMPLES[name])
    blocks = [
        block for text in _TEXTS.values() for _, of, block, _ in BLOCK.findall(text) if of == name
    ]
    assert blocks
    assert set(blocks) == {expected}


def test_the_number_of_models_is_right():
    count = len([module for module in MODELS.values() if module.startswith("trainer.")])
    for page in ("README.md", "docs/models.md"):
        assert f"{count} models" in _TEXTS[page]


def test_the_readme_is_short():
    text = _TEXTS["README.md"]
    assert len(text.splitlines()) <= 150
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for paragraph in re.split(r"\n\n|\n(?=- )", prose):
        if not paragraph.strip().startswith("|"):
            assert len(paragraph.strip().splitlines()) <= 4, paragraph


def test_the_readme_lists_every_recipe():
    recipes = set(re.findall(r"^\| `(configs/\w+\.py)`", _TEXTS["README.md"], re.MULTILINE))
    assert recipes == {f"configs/{path.name}" for path in (_ROOT / "configs").glob("*.py")}


def test_every_name_in_contributing_exists():
    """Each "`Name` in `file.py`" of its table is defined in that file."""
    table = _TEXTS["CONTRIBUTING.md"].partition("## To add something")[2].partition("\n## ")[0]
    pairs = re.findall(r"`(\w+)` in `([\w/]+\.py)`", table)
    assert {name for name, _ in pairs} >= {"MODELS", "SOURCES", "OPTIMIZERS", "BACKENDS", "VERBS"}
    for name, file in pairs:
        tree = ast.parse((_ROOT / file).read_text())
        targets = [node.targets for node in tree.body if isinstance(node, ast.Assign)]
        targets += [[node.target] for node in tree.body if isinstance(node, ast.AnnAssign)]
        defined = {ast.unparse(target) for one in targets for target in one}
        defined |= {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        assert name in defined, (name, file)


def test_every_python_example_is_run_by_a_test():
    found = {page: len(_blocks(text, "python")) for page, text in _TEXTS.items()}
    assert {page: n for page, n in found.items() if n} == {
        "docs/getting-started.md": 2,  # test_getting_started_runs
        "docs/models.md": 1,  # test_the_example_of_a_model…
        "docs/data.md": 1,  # test_the_example_of_a_source…
    }


def test_the_example_of_a_model_trains_and_is_looked_into(
    digits_config, digits, monkeypatch, user_folder
):
    monkeypatch.syspath_prepend(user_folder)
    settings = ["model.name=my_models.tinynet", "model.freeze=stage1", "optimizer.warmup_epochs=0"]
    config = config_lib.override(digits_config, settings)
    run = Run(config, digits, strategy_of(2))
    frozen = run.state.model.block1.conv.kernel.numpy()
    loss = run.train(30).loss
    assert loss[-5:].mean() < 0.9 * loss[:5].mean()
    assert (run.state.model.block1.conv.kernel.numpy() == frozen).all()
    rows = anatomy(run.state.model, config.data.image_size, channels=1)
    assert [row.stage for row in rows] == ["stage1", "stage2", "head", "head"]
    assert "stage1_block.conv.weight" in torch_tensors(config.model.name, run.state.model)


def test_the_example_of_a_source_is_read(digits_config, monkeypatch, user_folder):
    monkeypatch.syspath_prepend(user_folder)
    colors = {"red": (255, 0, 0), "blue": (0, 0, 255)}
    for split, count in (("train", 3), ("val", 2)):
        rows = []
        for name, color in colors.items():
            for number in range(count):
                file = f"{split}-{name}-{number}.png"
                image = tf.fill([4, 4, 1], tf.constant(1, tf.uint8)) * tf.constant(color, tf.uint8)
                tf.io.write_file(str(user_folder / file), tf.io.encode_png(image))
                rows.append((file, name))
        with (user_folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    settings = ["data.name=my_data.reader", "model.num_classes=2", "data.crop=none", "data.pad=0"]
    config = config_lib.override(digits_config, settings)
    for split, count in (("train", 6), ("val", 4)):
        source = open_source(config, split, str(user_folder))
        assert (len(source), source.class_names) == (count, ("blue", "red"))
        images, labels = source.fetch(tf.range(count, dtype=tf.int64))
        assert labels.dtype == tf.int32
        for index in range(count):
            name = source.class_names[labels[index].numpy()]
            assert tuple(tf.io.decode_png(images[index])[0, 0].numpy()) == colors[name]
            assert name in source.describe(index)


@pytest.mark.slow
def test_getting_started_runs(tmp_path):
    """Runs every block below the installation, in order, in a clone of HEAD.

    It uses this test's environment: installing another would take 2 GB. The commands are as short
    as on the page.
    """
    if shutil.which("git") is None or not (_ROOT / ".git").exists():
        pytest.skip("needs git, and a git checkout to clone")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(_ROOT), str(clone)], check=True)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TFDS_DATA_DIR": str(tmp_path / "data"),
    }
    environment.pop("PYTHONPATH", None)
    page = (clone / "docs" / "getting-started.md").read_text()
    blocks = re.findall(
        r"^```(bash|python)\n(.*?)^```", page.partition("\n## Train\n")[2], re.DOTALL | re.MULTILINE
    )
    assert len(blocks) == 7
    outputs = []
    for language, code in blocks:
        command = ["bash", "-euo", "pipefail", "-c", code]
        if language == "python":
            command = [sys.executable, "-c", code]
        result = subprocess.run(
            command, cwd=clone, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{code}\n{result.stdout}\n{result.stderr}"
        outputs.append(result.stdout)
    train, again, settings, _, photos, use, export = outputs
    assert "best accuracy" in train
    assert "already done: runs/first" in again
    assert "already done: runs/first; name another --workdir to train again" in page
    assert "resnet32" in settings
    assert "train: 400 images" in photos and "best accuracy" in photos
    assert len(re.findall(r"photos/val/\S+: digit-\d [01]\.\d{3}\n", use)) == 10
    assert "photos.safetensors: resnet18" in export
    assert {"runs", "photos", "photos.safetensors"} <= {path.name for path in clone.iterdir()}
