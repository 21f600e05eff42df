"""The config in print: `--help_config`, `--print_config`, docs/config.md."""

import re

import pytest

from tests.config.common import ROOT, fields, refusal
from tests.config.test_fields import RANGES
from tests.config.test_file import CONFIGS
from tests.config.test_saved import OTHER_VALUES, with_value
from trainer import main
from trainer.config import Config, load, override, show
from trainer.config.text import parse, spell


def helped(config: Config) -> dict[str, tuple[str, str, str]]:
    """Returns the fields' defaults in the help, the values, and the text below as one line."""
    pattern = r"^(\S+) = (.*?)(?: \(here (.*)\))?\n((?:    .*\n)+)"
    found = re.findall(pattern, show.help_text(config), re.MULTILINE)
    return {path: (default, value, " ".join(text.split())) for path, default, value, text in found}


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
    for default, value, text in found.values():
        assert default
        assert not value  # the default
        assert len(text.split()) > 3  # the values that it takes, and a sentence
        assert text.endswith(".")


def test_the_help_is_readable_at_80_columns():
    assert max(len(line) for line in show.help_text(Config()).splitlines()) == 80


@pytest.mark.parametrize("path", RANGES)
def test_the_help_gives_the_range_that_is_checked(path):
    (bad, *_), _ = RANGES[path]
    rule = re.fullmatch(r".*?: must be (.*), not .*", refusal(f"{path}={bad}"))
    assert rule is not None
    assert rule[1] in helped(Config())[path][2]


def test_the_help_gives_the_defaults_and_the_other_values_of_the_config():
    found = helped(load(str(ROOT / "configs" / "imagenet_resnet50.py")))
    assert found["model.num_classes"][:2] == ("10", "1000")
    assert found["optimizer.milestones"][:2] == ("()", "30.0,60.0,80.0")
    assert found["model.weights"][:2] == ("none", "")


def test_the_help_is_described_in_the_same_words_everywhere():
    words = show.HELP_CONFIG
    assert f"`--help_config` prints {words}." in show.markdown()
    assert f"Below: {words}." in " ".join(show.help_text(Config()).split())
    flag = main.FLAGS["help_config"].help
    assert flag == f"Print {words}, and exit."


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
    assert helped(with_value(Config(), path, value))[path][1] == spell(value)
