"""The config in print: `--help_config`, `--print_config`, docs/config.md."""

import re

import pytest

from tests.config.common import ROOT, fields, refusal
from tests.config.test_fields import RANGES
from tests.config.test_file import CONFIGS
from tests.config.test_saved import OTHER_VALUES, with_value
from trainer.config import Config, load, override, show
from trainer.config.text import parse, spell


def helped(config: Config) -> dict[str, tuple[str, str]]:
    """Returns the fields' values in the help, and the text below each as one line."""
    found = re.findall(r"^(\S+) = (.*)\n((?:    .*\n)+)", show.help_text(config), re.MULTILINE)
    return {path: (value, " ".join(text.split())) for path, value, text in found}


def test_the_page_of_fields_is_up_to_date():
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == show.markdown(), "run: python -m trainer.config > docs/config.md"


def test_the_page_has_every_field_once():
    cells = re.findall(r"^\| `([\w.]+)`[ *]* \|", show.markdown(), re.MULTILINE)
    assert sorted(cells) == sorted(fields())
    free = re.findall(r"^\| `([\w.]+)` \* \|", show.markdown(), re.MULTILINE)
    assert set(free) == {path for path, (_, changes) in OTHER_VALUES.items() if not changes}


def test_the_help_has_every_field_with_its_meaning():
    found = helped(Config())
    assert set(found) == set(fields())
    for value, text in found.values():
        assert value
        assert len(text.split()) > 3  # the values that it takes, and a sentence
        assert text.endswith(".")


def test_the_help_is_readable_at_80_columns():
    assert max(len(line) for line in show.help_text(Config()).splitlines()) == 80


@pytest.mark.parametrize("path", RANGES)
def test_the_help_gives_the_range_that_is_checked(path):
    (bad, *_), _ = RANGES[path]
    rule = re.fullmatch(r".*?: must be (.*), not .*", refusal(f"{path}={bad}"))
    assert rule is not None
    assert rule[1] in helped(Config())[path][1]


def test_the_help_gives_the_values_of_the_config():
    found = helped(load(str(ROOT / "configs" / "imagenet_resnet50.py")))
    assert found["model.num_classes"][0] == "1000"
    assert found["optimizer.milestones"][0] == "30.0,60.0,80.0"
    assert found["model.weights"][0] == "none"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_printed_config_can_be_given_to_set(path):
    config = load(str(path))
    lines = show.values_text(config).splitlines()
    assignments = [line for line in lines if line and not line.startswith("#")]
    assert len(assignments) == len(fields())
    assert override(Config(seed=7), assignments) == config


@pytest.mark.parametrize("path", OTHER_VALUES)
def test_a_value_s_text_is_read_as_the_value(path):
    value = OTHER_VALUES[path][0]
    assert parse(spell(value), fields()[path]) == value
    assert helped(with_value(Config(), path, value))[path][0] == spell(value)
