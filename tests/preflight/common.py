"""What the tests of preflight share."""

from pathlib import Path

import pytest

from trainer.preflight import compiler
from trainer.preflight.compiler import CompiledProgram

ROOT = Path(__file__).parents[2]


needs_compiler = pytest.mark.skipif(
    not compiler.PYTHON.exists(), reason="needs the TPU's compiler: make preflight-env"
)


def canary(test):
    return needs_compiler(pytest.mark.usefixtures("xla")(test))


COMPILED = CompiledProgram(
    *(3 * 2**30, 1.97e12, 1e10, 2, 102_000_000, 0, 61.0, {"libtpu": "0.0.29"}, False)
)
