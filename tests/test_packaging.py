"""The package: what it installs, the commands it defines, and the files that name its version."""

import email
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import trainer
from tests.test_imports import WITHOUT_TENSORFLOW

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def help_of(*command: str) -> str:
    shown = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("command", "target"), PROJECT["scripts"].items())
def test_a_command_starts_the_same_as_python_dash_m(command, target):
    """Its help shows the same flags; absl finds them by the main module's name."""
    module, _, function = target.partition(":")
    program = (
        f"import sys; sys.argv[0] = {command!r}; from {module} import {function}; "
        f"sys.exit({function}())"
    )
    known = re.compile(r"^ +(--\S+)", re.MULTILINE)
    if module == "launch.cli":  # its flags belong to its commands
        known = re.compile(r"^    (\w+) ", re.MULTILINE)
    started_by = module.removesuffix(".__main__").removesuffix(".cli")
    expected = known.findall(help_of("-m", started_by))
    assert len(expected) >= 2
    assert known.findall(help_of("-c", program)) == expected


def test_every_verb_has_a_command():
    files = [*(ROOT / "trainer").glob("*.py"), *(ROOT / "trainer").glob("*/__main__.py")]
    verbs = {path for path in files if re.search(r"\bcommand\.run\(", path.read_text())}
    modules = {target.partition(":")[0] for target in PROJECT["scripts"].values()}
    commands = {ROOT / f"{module.replace('.', '/')}.py" for module in modules}
    assert verbs == {path for path in commands if path.is_relative_to(ROOT / "trainer")}


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [trainer.__version__]
    heading = re.search(r"^## \[(.+)\] - ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading
    assert heading[1] == trainer.__version__


def test_the_classifiers_match_the_allowed_pythons():
    prefix = "Programming Language :: Python :: 3."
    lines = [line for line in PROJECT["classifiers"] if line.startswith(prefix)]
    named = [f"3.{line.removeprefix(prefix)}" for line in lines]
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert named == [f"3.{minor}" for minor in range(30) if f"3.{minor}.0" in allowed]


def test_pyright_knows_each_folder_that_it_checks_without_exceptions():
    environments = PYPROJECT["tool"]["pyright"]["executionEnvironments"]
    roots = [e["root"] for e in environments]
    assert [root for root in roots if not (ROOT / root).exists()] == []
    free = {f"trainer/{name.replace('.', '/')}" for name in WITHOUT_TENSORFLOW}
    assert {root.removesuffix(".py") for root in roots if root.startswith("trainer/")} == free


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel, built from a copy because setuptools leaves a folder behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("trainer", "launch", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, folder / "source"], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_a_wheel_has_every_file_of_the_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        version = email.message_from_bytes(archive.read(metadata))["Version"]
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in ("trainer", "launch", "configs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"trainer/py.typed", "launch/py.typed", "configs/digits_resnet20.py"} <= files
    assert installed == files
    assert version == trainer.__version__


@pytest.mark.slow
def test_an_installed_trainer_finds_its_recipes_from_any_folder(wheel, tmp_path):
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    program = "from trainer.config import recipes as r; print(r.find('configs/digits_resnet20.py'))"
    shown = subprocess.run(
        [sys.executable, "-c", program],
        cwd=elsewhere,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(shown.stdout.strip()) == installed / "configs" / "digits_resnet20.py"
