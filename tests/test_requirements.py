"""The files of pinned packages say the same of each package, but for what TensorFlow 2.20 needs."""

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
# What is another version on TensorFlow 2.20, and what comes with it alone.
OTHERS = {"tf-keras", "tensorboard", "numpy", "ml-dtypes", "protobuf"}
ALONE = {"tensorflow-tpu", "libtpu", "wheel"}


def test_a_tpu_has_what_other_machines_have():
    assert {name: TPU[name] for name in TPU.keys() - OTHERS - ALONE} == {
        name: ORDINARY[name] for name in TPU.keys() - OTHERS - ALONE
    }
    assert {name for name in OTHERS if TPU[name] != ORDINARY[name]} == OTHERS
    # PyYAML is for manifests, which are made elsewhere; plain TensorFlow would come over the other.
    assert pins("requirements.txt").keys() - TPU.keys() == {"tensorflow", "pyyaml"}
    assert TPU["tensorflow-tpu"] == request._TENSORFLOW


def test_the_tests_on_it_have_the_same_tools():
    tools = pins("tests/requirements-tf220.txt")
    assert tools == {name: ORDINARY[name] for name in tools}
    assert not tools.keys() & TPU.keys()


def test_it_is_installed_without_dependencies():
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
    # A TPU VM has the oldest versions that are tested; tensorflow-tpu stands for tensorflow there.
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
