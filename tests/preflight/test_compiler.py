"""The TPU's compiler in its own process: its answers, by stand-ins, and its cache."""

import contextlib
import json
import os
import select
from pathlib import Path

import pytest

from tests.conftest import with_model
from tests.preflight.common import ROOT, canary
from trainer.errors import UserError
from trainer.preflight import compiler, program
from trainer.preflight.compiler import CompiledProgram, Deadline, OutOfMemory, TimeLimitError


def stand_in(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "environment" / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("installed", "words"),
    [(None, "is not installed"), ("jax==0.1\n", "differs from requirements-preflight.txt")],
)
def test_without_this_compiler_it_says_how_to_get_it(tmp_path, installed, words):
    python = stand_in(tmp_path, "exit 0")
    if installed:
        (python.parents[1] / "installed").write_text(installed)
    with pytest.raises(UserError, match=f"{words}: rm -rf .* && make preflight-env"):
        compiler.check_environment(python.parents[1])
    right = (ROOT / "requirements-preflight.txt").read_text()
    (python.parents[1] / "installed").write_text(right)
    compiler.check_environment(python.parents[1])


def test_an_installed_package_says_that_it_needs_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "_ROOT", tmp_path)
    with pytest.raises(UserError, match="is not installed: clone the repository, and run make"):
        compiler.check_environment(tmp_path / ".venv-preflight")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo 'Check failed: bad' >&2; kill -ABRT $$", "signal 6): Check failed: bad"),
        ("echo 'No module named jax' >&2; exit 1", "exit code 1): No module named jax"),
        ("exit 0", "exit code 0): no output"),
        ("echo 'Segmentation fault'", "no result"),
        (
            """echo '{"status": "no_slice", "reason": "3x3"}'""",
            "--tpu=v5e:2x2: no such slice (3x3)",
        ),
    ],
)
def test_a_compiler_that_breaks_is_one_line(body, words, tmp_path):
    with pytest.raises(UserError) as error:
        compiler.compile_program(b"", "v5e:2x2", Deadline(60), stand_in(tmp_path, body))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_it_answers_is_read(tmp_path):
    values = {"status": "out_of_memory", "needed_bytes": 2**35}
    values |= {"compile_seconds": 3.5, "versions": {"libtpu": "0.0.29"}, "cached": False}
    python = stand_in(tmp_path, f"echo 'a warning'; echo '{json.dumps(values)}'")
    found = compiler.compile_program(b"", "v5e:2x2", Deadline(60), python)
    assert found == OutOfMemory(2**35, 3.5, {"libtpu": "0.0.29"}, False)


def test_at_the_time_limit_nothing_of_it_is_left(tmp_path):
    """Not its children either: one writes who it is, and both would go on for an hour."""
    child = tmp_path / "child"
    os.mkfifo(child)
    python = stand_in(tmp_path, f"sleep 3600 & echo $! > {child}; wait")
    reader = os.open(child, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(TimeLimitError):
        compiler.compile_program(b"", "v5e:2x2", Deadline(2.0), python)
    pid = int(os.read(reader, 100))
    os.close(reader)
    with contextlib.suppress(ProcessLookupError):  # it is gone already
        process = os.pidfd_open(pid)
        ended, _, _ = select.select([process], [], [], 60)
        os.close(process)
        assert ended


@canary
def test_canary_a_cache_that_cannot_be_used_costs_time_alone(small_config, tmp_path, monkeypatch):
    hlo = program.train_step_program(with_model(small_config, "linear"), 1)

    def compile_() -> bool:
        found = compiler.compile_program(hlo, "v5e:1x1", Deadline(600))
        assert isinstance(found, CompiledProgram)
        return found.cached

    assert [compile_(), compile_()] == [False, True]
    (entry,) = compiler.cache_folder().iterdir()
    for damage in ("", "{}", '{"status": "compiled"'):
        entry.write_text(damage)
        assert [compile_(), compile_()] == [False, True]
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/x")
    assert [compile_(), compile_()] == [False, False]
