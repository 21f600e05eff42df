"""Which file `--config` names, inside and outside of a checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config import recipes

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs" / "digits_resnet20.py"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["configs/digits_resnet20.py", "digits_resnet20.py", "digits_resnet20", str(DIGITS)]
)
def test_an_installed_recipe_is_found_from_any_folder(here, name):
    assert recipes.find(name) == DIGITS


@pytest.mark.parametrize("name", ["configs/digits_resnet20.py", "digits_resnet20"])
def test_the_users_own_file_comes_first(here, name):
    own = here / "configs" / "digits_resnet20.py"
    own.parent.mkdir()
    own.touch()
    assert recipes.find(name).resolve() == own


def test_an_exact_path_comes_first(here):
    (here / "configs").mkdir()
    (here / "configs" / "mine.py").touch()
    (here / "mine.py").touch()
    assert recipes.find("mine.py").resolve() == here / "mine.py"
    assert recipes.find("mine").resolve() == here / "configs" / "mine.py"


def test_a_folder_of_a_recipes_name_does_not_hide_it(here):
    (here / "digits_resnet20").mkdir()
    assert recipes.find("digits_resnet20") == DIGITS


@pytest.mark.parametrize(
    "name",
    ["nope", "configs/nope.py", "other/digits_resnet20.py", "digits_resnet20.json", "configs", ""],
)
def test_an_unknown_name_stays_as_typed(here, name):
    assert recipes.find(name) == Path(name)


def test_known_names_are_those_that_are_found(here):
    assert recipes.known() == sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    (here / "configs").mkdir()
    for name in ("mine.py", "digits_resnet20.py"):
        (here / "configs" / name).touch()
    names = recipes.known()
    assert {"configs/mine.py", "configs/digits_resnet20.py", "cifar10_resnet20"} <= set(names)
    assert "digits_resnet20" not in names
    assert all(recipes.find(name).is_file() for name in names)


def test_a_checkout_is_used_without_being_installed(here):
    """`python -m trainer.main` works in the repository's root, without package metadata."""
    command = [sys.executable, "-c", "from trainer.config import recipes; print(recipes.SHIPPED)"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(shown.stdout.strip()) == ROOT / "configs"
