"""The requirements files pin the same versions, except for those that TensorFlow 2.20 needs."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from launch.tpu import request

ROOT = Path(__file__).parents[1]


def pins(*files: str) -> dict[str, str]:
    lines = [line for file in files for line in (ROOT / file).read_text().splitlines()]
    found = [re.match(r"([\w.-]+)==(\S+)", line) for line in lines]
    return {re.sub(r"[._-]+", "-", m[1]).lower(): m[2] for m in found if m}


ORDINARY = pins("requirements.txt", "requirements-dev.txt", "constraints.txt")
TPU = pins("requirements-tpu.txt")
# Packages with another version on TensorFlow 2.20, and packages that only it needs.
OTHERS = {"tf-keras", "tensorboard", "numpy", "ml-dtypes", "protobuf"}
ALONE = {"tensorflow-tpu", "libtpu", "wheel"}


def test_tpu_pins_match_the_ordinary_pins():
    assert {name: TPU[name] for name in TPU.keys() - OTHERS - ALONE} == {
        name: ORDINARY[name] for name in TPU.keys() - OTHERS - ALONE
    }
    assert {name for name in OTHERS if TPU[name] != ORDINARY[name]} == OTHERS
    # A TPU VM writes no manifests, so it needs no PyYAML; plain TensorFlow would overwrite
    # tensorflow-tpu.
    assert pins("requirements.txt").keys() - TPU.keys() == {"tensorflow", "pyyaml"}
    assert TPU["tensorflow-tpu"] == request._TENSORFLOW


def test_tests_for_tensorflow_220_use_the_same_tools():
    tools = pins("tests/requirements-tf220.txt")
    assert tools == {name: ORDINARY[name] for name in tools}
    assert not tools.keys() & TPU.keys()


def test_tpu_requirements_are_installed_without_dependencies():
    for file in ("docs/tpu.md", "Makefile", "requirements-tpu.txt"):
        lines = [line for line in (ROOT / file).read_text().splitlines() if "install " in line]
        assert all("--no-deps" in line for line in lines if "-r requirements-tpu.txt" in line)
        assert any("--no-deps" in line for line in lines)


def test_pyproject_names_the_pinned_packages_with_ranges_that_allow_the_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["launch"]]
    ranges = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}
    pinned = pins("requirements.txt")
    assert ranges.keys() == pinned.keys()
    refused = [str(r) for name, r in ranges.items() if not r.specifier.contains(pinned[name])]
    # A TPU VM has the oldest tested versions, with tensorflow-tpu in place of tensorflow.
    on_a_tpu = TPU | {"tensorflow": TPU["tensorflow-tpu"]}
    refused += [
        str(r)
        for name, r in ranges.items()
        if name in on_a_tpu and not r.specifier.contains(on_a_tpu[name])
    ]
    assert refused == []
    (gpu,) = map(Requirement, extras["gpu"])
    assert (gpu.name, gpu.extras) == ("tensorflow", {"and-cuda"})
    assert gpu.specifier == ranges["tensorflow"].specifier
