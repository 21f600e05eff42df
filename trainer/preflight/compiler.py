"""Runs the TPU's compiler: compile_hlo.py in a separate process and environment. No TensorFlow.

The process is separate since the compiler can abort, the environment since the compiler needs other
versions than TensorFlow does.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from trainer.errors import UserError

_SCRIPT = Path(__file__).with_name("compile_hlo.py")
_ROOT = _SCRIPT.parents[2]
ENVIRONMENT = _ROOT / ".venv-preflight"
PYTHON = ENVIRONMENT / "bin" / "python"


class CompiledProgram(NamedTuple):
    """The compiler's figures of a program, per core."""

    peak_bytes: int  # arguments, results that do not replace them, temporary values and code
    flops: float  # per step
    bytes_accessed: float  # of HBM, per step
    all_reduces: int
    all_reduce_bytes: int  # that each core contributes
    recomputed: int  # operations that are done twice to save memory
    compile_seconds: float  # of the compilation, now or when it was cached
    versions: dict[str, str]
    cached: bool


class OutOfMemory(NamedTuple):
    """A program that needs more memory than there is."""

    needed_bytes: int  # at least; 0 if the compiler does not say
    compile_seconds: float
    versions: dict[str, str]
    cached: bool


class Refused(NamedTuple):
    """A program that the compiler cannot compile."""

    reason: str
    op_name: str  # TensorFlow's name of the operation, or ""


class TimeLimitError(Exception):
    """The time limit for compiling has passed."""


class Deadline:
    """The time limit for all compilations together."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


def cache_folder() -> Path:
    """Returns the folder of the cached results."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "trainer-preflight"


def check_environment(folder: Path = ENVIRONMENT) -> None:
    """Raises UserError if the compiler is not installed, or in another version."""
    installed = folder / "installed"  # written last, from the requirements
    if not os.access(folder / "bin" / "python", os.X_OK) or not installed.exists():
        raise UserError(f"{folder}: the TPU's compiler is not installed: {_install(folder)}")
    if installed.read_text() != (_ROOT / "requirements-preflight.txt").read_text():
        raise UserError(f"{folder}: differs from requirements-preflight.txt: {_install(folder)}")


def compile_program(
    program: bytes, slice_name: str, deadline: Deadline, python: Path = PYTHON
) -> CompiledProgram | OutOfMemory | Refused:
    """Compiles a serialized HloModuleProto for a slice, or finds the result in the cache.

    Raises:
        TimeLimitError: when the deadline has passed; no process is left running.
        UserError: if there is no such slice, or the compiler fails.
    """
    command = [str(python), str(_SCRIPT), slice_name, str(cache_folder())]
    # This process's settings of TPUs, XLA and Python are not meant for it.
    foreign = ("TPU_", "LIBTPU", "XLA_", "JAX_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    code, output, errors = _run(command, program, kept, deadline)
    lines = output.strip().splitlines()
    if code or not lines:
        what = f"signal {-code}" if code < 0 else f"exit code {code}"
        last = (errors.strip().splitlines() or ["no output"])[-1]
        raise UserError(_broken(what, last, python))
    try:
        result = json.loads(lines[-1])
    except json.JSONDecodeError:
        raise UserError(_broken("no result", lines[-1], python)) from None
    status = result.pop("status")
    if status == "no_slice":
        raise UserError(f"--tpu={slice_name}: no such slice ({result['reason']})")
    if status == "refused":
        return Refused(result["reason"], result["op_name"])
    kind = OutOfMemory if status == "out_of_memory" else CompiledProgram
    return kind(**{name: result[name] for name in kind._fields})


def _broken(what: str, last_line: str, python: Path) -> str:
    return (
        f"the TPU's compiler failed ({what}): {last_line[:300]}; install it again: "
        f"{_install(python.parents[1])}"
    )


def _install(folder: Path) -> str:
    if not (_ROOT / "Makefile").exists():  # installed as a package
        return "clone the repository, and run make preflight-env and preflight there (1.2 GB)"
    return f"rm -rf {folder} && make preflight-env (1.2 GB)"


def _run(
    command: list[str], program: bytes, env: dict[str, str], deadline: Deadline
) -> tuple[int, str, str]:
    """Runs a process and returns its exit code, output and errors.

    It and its children are killed when the deadline passes or this process is interrupted.
    """
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(program, max(0.0, deadline.left))
    except subprocess.TimeoutExpired:
        raise TimeLimitError from None
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, output.decode(errors="replace"), errors.decode(errors="replace")
