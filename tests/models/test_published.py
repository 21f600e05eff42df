"""docs/models.md: every model's figures, compared with published ones."""

import functools
import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from trainer import config as config_lib
from trainer.config import Config
from trainer.insight.anatomy import Row, anatomy
from trainer.models.build import build_model, family_of
from trainer.registry import MODELS

_ROOT = Path(__file__).parents[2]
COUNTS = json.loads((_ROOT / "tests" / "parity" / "golden.json").read_text())["counts"]


class Line(NamedTuple):
    """A line of the table, as text."""

    name: str
    image: str
    parameters: str
    published_parameters: str
    multiply_adds: str
    published_multiply_adds: str
    source: str


def table() -> dict[str, Line]:
    text = (_ROOT / "docs" / "models.md").read_text().partition("## Published counts")[2]
    rows = [re.split(r"\s*\|\s*", row.strip("| ")) for row in text.splitlines() if "| `" in row]
    return {row[0].strip("`"): Line(*row) for row in rows}


QUICK = ("resnet18", "resnet50", "resnet50_v1", "resnet18d", "seresnet18", "resnext50_32x4d")
QUICK += ("resnet20", "wrn16_4", "vgg11_bn", "mobilenetv2_100", "mobilenetv3_large_100")


EACH_NAME = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in MODELS
]


@functools.cache
def config_of(name: str) -> Config:
    size, classes = table()[name].image.split(", ")
    settings = [f"model.name={name}", f"model.num_classes={classes}", f"data.image_size={size}"]
    return config_lib.override(Config(), settings)


@functools.cache
def rows_of(name: str) -> list[Row]:
    config = config_of(name)
    return anatomy(build_model(config, channels=3), config.data.image_size, channels=3)


def totals(name: str) -> tuple[int, int]:
    rows = rows_of(name)
    return sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows)


def test_the_table_has_every_model_and_every_family_its_names():
    assert list(table()) == list(MODELS)
    by_family = {}
    for name in MODELS:
        family = family_of(name)
        by_family.setdefault(family, []).append(name)
    for family, names in by_family.items():
        assert list(family.VARIANTS) == names


@pytest.mark.parametrize("name", EACH_NAME)
def test_counts_are_the_published_ones(name):
    line, (parameters, multiply_adds) = table()[name], totals(name)
    assert line.parameters == f"{parameters:,}"
    assert line.multiply_adds == f"{multiply_adds:,}"
    if line.published_parameters.endswith(" M"):
        number = line.published_parameters.removesuffix(" M")
        assert f"{parameters / 1e6:.{len(number.partition('.')[2])}f}" == number
    else:
        assert line.published_parameters == f"{parameters:,}"
    published = line.published_multiply_adds
    if line.source == "torchvision" or line.source.endswith("pytorch-cifar-models"):
        assert f"{multiply_adds / 1e9:.{len(published.partition('.')[2])}f}" == published
    elif published != "-":
        assert -0.005 < float(published) - multiply_adds / 1e9 < 0.005 + 0.035 * float(published)


@pytest.mark.parametrize("name", [p for p in EACH_NAME if p.values[0] in COUNTS])
def test_counts_are_those_of_timm_s_network(name):
    """Counted by hooks on timm's modules (tests/parity/reference.py)."""
    assert COUNTS[name]["image_size"] == config_of(name).data.image_size
    assert totals(name) == (COUNTS[name]["parameters"], COUNTS[name]["multiply_adds"])


def test_timm_s_counts_exist_for_all_but_networks_for_small_images():
    small = [name for name in MODELS if table()[name].image == "32, 10"]
    assert set(COUNTS) == set(MODELS) - set(small)


@pytest.mark.parametrize("name", [p for p in EACH_NAME if p.values[0].startswith("wrn")])
def test_wide_residual_networks_follow_the_closed_form(name):
    depth, width = map(int, re.findall(r"\d+", name))
    blocks = (depth - 4) // 6
    parameters, multiply_adds = 27 * 16, 27 * 16 * 32**2
    inputs, size = 16, 32
    for stage in range(3):
        filters = 16 * 2**stage * width
        size_before, size = size, 32 // 2**stage
        for index in range(blocks):
            convolutions = 9 * inputs * filters + 9 * filters**2
            norms = 2 * inputs + 2 * filters
            projection = inputs * filters if index == 0 else 0
            assert (inputs != filters) == (index == 0)
            parameters += convolutions + norms + projection
            multiply_adds += (convolutions + projection) * size**2
            inputs = filters
        assert size in (size_before, size_before // 2)
    parameters += 2 * inputs + 10 * inputs + 10
    multiply_adds += 10 * inputs
    assert totals(name) == (parameters, multiply_adds)


@pytest.mark.parametrize(
    ("name", "pixels"),
    # Araujo et al. 2019, "Computing Receptive Fields of Convolutional Neural Networks", table 1.
    # Its ResNets shrink the image in the first convolution of a block.
    [
        ("resnet50_v1", 483),
        pytest.param("resnet101_v1", 1027, marks=pytest.mark.slow),
        pytest.param("resnet152_v1", 1507, marks=pytest.mark.slow),
        pytest.param("vgg16_bn", 212, marks=pytest.mark.slow),
    ],
)
def test_receptive_fields_are_the_published_ones(name, pixels):
    last = [row for row in rows_of(name) if row.stage.startswith("stage")][-1]
    assert last.receptive_field == pixels
