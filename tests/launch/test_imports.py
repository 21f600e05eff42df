"""The launcher's imports, and when they happen."""

import subprocess
import sys

import pytest

from launch import backends
from tests.launch.runs import ROOT
from tests.test_imports import imports, packages

SOURCES = {
    path.relative_to(ROOT / "launch").with_suffix("").as_posix(): path.read_text()
    for path in sorted((ROOT / "launch").rglob("*.py"))
}
BACKENDS = ("local", "slurm", "kubernetes", "tpu")
HEAVY = {"tensorflow", "tf_keras", "keras", "numpy", "absl"}


def within(name: str, module: str) -> bool:
    """Returns whether a dotted name is a module, or something in it."""
    return f"{name}.".startswith(f"{module}.")


def of_the_trainer(source: str) -> set[str]:
    """Returns the imports that launch must not have: trainer, except trainer.files."""
    found = {name for name in imports(source) if within(name, "trainer")}
    return {name for name in found if not within(name, "trainer.files")}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_launch_imports_only_files_from_the_trainer(source):
    assert of_the_trainer(source) == set()
    assert packages(imports(source)) & HEAVY == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import trainer", {"trainer"}),
        ("from trainer import config, files", {"trainer.config"}),
        ("def f():\n    from trainer.filesystem import x", {"trainer.filesystem.x"}),
        ("import trainer.files\nfrom trainer.files import locked\nimport trainers", set()),
    ],
)
def test_no_import_of_the_trainer_escapes(source, found):
    assert of_the_trainer(source) == found


@pytest.mark.parametrize("name", ["__init__", "files"])
def test_what_it_imports_needs_only_the_standard_library(name):
    found = packages(imports((ROOT / "trainer" / f"{name}.py").read_text()))
    assert found <= sys.stdlib_module_names


def of_back_ends(source: str, own: str) -> set[str]:
    """Returns the imports from other back ends."""
    others = [f"launch.{backend}" for backend in BACKENDS if backend != own]
    return {name for name in imports(source) if any(within(name, other) for other in others)}


@pytest.mark.parametrize(("path", "source"), SOURCES.items(), ids=SOURCES)
def test_back_ends_are_independent(path, source):
    """They don't import each other; shared files import none, except for `status --health`."""
    allowed = {"launch.tpu.health"} if path == "cli" else set()
    assert of_back_ends(source, own=path.partition("/")[0]) == allowed


def test_no_import_of_a_back_end_escapes():
    source = "from launch import slurm, records\nif 1:\n    import launch.tpu.rest as rest"
    assert of_back_ends(source, own="local") == {"launch.slurm", "launch.tpu.rest"}
    assert of_back_ends(source, own="tpu") == {"launch.slurm"}


def test_each_back_end_is_known():
    assert {path.split(".")[1] for path in backends.BACKENDS.values()} == set(BACKENDS)


def test_heavy_libraries_are_imported_late():
    """Listing runs, or showing one, needs none of them."""
    code = (
        "import sys\nfrom launch import backends, cli\nfor name in backends.BACKENDS:\n"
        "    backends.load(name)\ncli.main(['list'])\n"
        "print({'yaml', 'requests', 'google.auth', 'cloud_tpu_client'} & set(sys.modules))"
    )
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert output == "no runs\nset()\n"
