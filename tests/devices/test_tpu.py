"""What `--strategy=tpu` does before TensorFlow is imported. There is no TPU here.

Packages and chips are stand-ins: folders that pip could have written, a file in place of a chip.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from tests.devices.common import LIBTPU, message
from tests.test_main import only_line, run_main
from trainer.devices import tpu
from trainer.errors import UserError

# --- the environment --------------------------------------------------------------------------


def test_the_name_is_the_flag_or_the_environment():
    assert tpu.name_of("", {}) == ""
    assert tpu.name_of("a", {}) == tpu.name_of("", {"TPU_NAME": "a"}) == "a"
    assert tpu.name_of("a", {"TPU_NAME": "a"}) == "a"
    with pytest.raises(UserError, match=r"--tpu=local: TPU_NAME names another TPU, a; unset it"):
        tpu.name_of("local", {"TPU_NAME": "a"})


def test_the_environment_of_chips_of_this_machine(packages):
    library = str(packages() / "libtpu" / "libtpu.so")
    right = {
        "TPU_NAME": "local",
        "PJRT_DEVICE": "TPU",
        "NEXT_PLUGGABLE_DEVICE_USE_C_API": "true",
        LIBTPU: library,
    }
    assert tpu.environment("local", {}) == right
    assert tpu.environment("local", right) == right
    assert "libtpu" not in sys.modules  # found, not imported


def test_the_environment_of_a_slice():
    assert tpu.environment("a", {"PATH": "x"}) == {"TPU_NAME": "a", "TPU_LOAD_LIBRARY": "0"}


def test_what_is_set_already_stays(tmp_path):
    own = tmp_path / "libtpu.so"
    own.touch()
    given = {LIBTPU: str(own), "NEXT_PLUGGABLE_DEVICE_USE_C_API": "1", "TPU_LOAD_LIBRARY": "1"}
    found = given | tpu.environment("local", given)
    assert {name: found[name] for name in given} == given


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("local", "TPU_LOAD_LIBRARY", "0"),
        ("local", "PJRT_DEVICE", "CPU"),
        ("local", "NEXT_PLUGGABLE_DEVICE_USE_C_API", "false"),
        ("a", "TPU_LOAD_LIBRARY", "1"),
        ("a", LIBTPU, "/lib/libtpu.so"),
    ],
)
def test_a_contradiction_is_refused(name, variable, value):
    with pytest.raises(UserError) as error:
        tpu.environment(name, {variable: value})
    assert message(error).startswith(f"--tpu={name}: contradicts {variable}={value}, which ")


def test_a_library_that_is_not_there():
    with pytest.raises(UserError, match=rf"^{LIBTPU}=/nowhere/libtpu.so: is not a file; unset it"):
        tpu.environment("local", {LIBTPU: "/nowhere/libtpu.so"})


# --- packages, chips and the import, for chips of this machine --------------------------------


@pytest.fixture
def chip(tmp_path, monkeypatch) -> Path:
    """A file in place of a chip's device."""
    monkeypatch.setattr(tpu, "_CHIPS", (str(tmp_path / "accel[0-9]*"),))
    path = tmp_path / "accel0"
    path.touch()
    return path


def prepare_local(folder: Path, **environ: str) -> dict[str, str]:
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), **environ}
    assert tpu.prepare("local", environ) == "local"
    return environ


@pytest.mark.usefixtures("chip")
@pytest.mark.parametrize(
    ("installed", "parts"),
    [
        (
            {"tensorflow": ""},
            ["tensorflow 2.21.0 is installed", "only tensorflow-tpu supports TPUs"],
        ),
        ({"libtpu": ""}, ["libtpu", "is not installed"]),
        ({"libtpu": "0.0.32"}, ["libtpu 0.0.32", "TensorFlow 2.20.0", "from 0.0.32 on"]),
        ({"libtpu": "0.0.100"}, ["libtpu 0.0.100", "TensorFlow 2.20.0"]),
        (
            {"written_over": True},
            ["overwrote tensorflow-tpu 2.20.0", "create the environment again"],
        ),
    ],
    ids=["plain TensorFlow", "no libtpu", "libtpu too new", "much too new", "written over"],
)
def test_a_wrong_package_is_reported_without_importing_it(packages, installed, parts):
    folder = packages(**installed)
    with pytest.raises(UserError) as error:
        prepare_local(folder)
    text = message(error)
    assert [part for part in [*parts, "requirements-tpu.txt"] if part not in text] == []


def test_the_pinned_libtpu_is_none_that_aborts():
    """requirements-tpu.txt against the table of what was seen."""
    lines = (Path(__file__).parents[2] / "requirements-tpu.txt").read_text().splitlines()
    pins = dict(line.split()[0].split("==") for line in lines if "==" in line and line[0] != "#")
    first = tpu._ABORTS_FROM[tpu._minor(pins["tensorflow-tpu"])]
    assert tpu._numbers(pins["libtpu"]) < tpu._numbers(first)
    assert "tensorflow" not in pins  # it would lie over tensorflow-tpu
    assert tpu._numbers("0.0.31") < tpu._numbers("0.0.32") <= tpu._numbers("0.0.32.1")


def test_a_machine_without_chips(packages, chip):
    chip.unlink()
    with pytest.raises(UserError) as error:
        prepare_local(packages())
    assert message(error).startswith("--tpu=local: this machine has no TPU (")


def test_a_process_that_holds_the_chip_is_named(packages, chip):
    folder = packages(body="")
    code = "import sys; file = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(chip)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError) as error:
            prepare_local(folder)
        assert f"process {other.pid} (python" in message(error)
        prepare_local(folder, TPU_VISIBLE_CHIPS="0")  # shared out on purpose
        other.communicate()
    with open(chip):
        prepare_local(folder)  # it is our own


@pytest.mark.usefixtures("chip")
@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("import os; os.abort()", ["TensorFlow 2.20.0 with libtpu 0.0.29", "ends", "SIGABRT"]),
        ("raise ImportError('first\\nlast line')", ["importing it fails (last line)"]),
        ("import threading; threading.Event().wait()", ["more than 0.5 s", "metadata server"]),
    ],
    ids=["aborts", "raises", "does not end"],
)
def test_an_import_that_would_end_this_process_ends_another(packages, monkeypatch, body, parts):
    if "wait" in body:
        monkeypatch.setattr(tpu, "_IMPORT_S", 0.5)
    with pytest.raises(UserError) as error:
        prepare_local(packages(body=body))
    text = message(error)
    assert [part for part in parts if part not in text] == []


@pytest.mark.usefixtures("chip")
def test_the_import_that_is_tried_has_the_environment_of_the_real_one(packages, tmp_path):
    body = f"import os, json; json.dump(dict(os.environ), open({str(tmp_path / 'env')!r}, 'w'))"
    environ = prepare_local(packages(body=body), TF_CONFIG="left over")
    assert "TF_CONFIG" not in environ
    seen = (tmp_path / "env").read_text()
    for name in ("TPU_NAME", "PJRT_DEVICE", LIBTPU):
        assert f'"{name}": "{environ[name]}"' in seen
    assert "TF_CONFIG" not in seen


# --- the command ------------------------------------------------------------------------------


def test_on_this_machine_it_is_refused_in_a_line(tmp_path, monkeypatch):
    """And TensorFlow is not imported. Either plain TensorFlow is installed here, or tensorflow-tpu
    without a TPU."""
    monkeypatch.delenv("TPU_LOAD_LIBRARY", raising=False)  # of make test-tf220
    result = run_main("--strategy=tpu", "--tpu=local", f"--workdir={tmp_path / 'run'}")
    plain = f"--tpu=local: tensorflow {tf.__version__} is installed, but only tensorflow-tpu"
    assert only_line(result).startswith((plain, "--tpu=local: this machine has no TPU"))
    assert not (tmp_path / "run").exists()
