"""The TPU's compiler: compile_hlo.py in a process and an environment of its own. No TensorFlow.

In a process of its own since the compiler can abort, in an environment of its own since it needs
other versions than TensorFlow does.
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
    """What the compiler says of a program that it compiled, for each core."""

    peak_bytes: int  # arguments, results that are not over them, temporary values and code
    flops: float  # of one step
    bytes_accessed: float  # of HBM, in one step
    all_reduces: int
    all_reduce_bytes: int  # that each core puts into them
    recomputed: int  # operations that are done twice, to hold less
    compile_seconds: float  # when it was compiled, here or for the cache
    versions: dict[str, str]
    cached: bool


class OutOfMemory(NamedTuple):
    """What it says of one that needs too much."""

    needed_bytes: int  # at least; 0 where it does not say
    compile_seconds: float
    versions: dict[str, str]
    cached: bool


class Refused(NamedTuple):
    """What it says of one that it cannot compile."""

    reason: str
    op_name: str  # TensorFlow's name of the operation, or ""


class TimeLimitError(Exception):
    """The time for compiling was over."""


class Deadline:
    """The end of the time that all compiling may take together."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


def cache_folder() -> Path:
    """Where results lie, each by what was compiled and what compiled it."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "trainer-preflight"


def check_environment(folder: Path = ENVIRONMENT) -> None:
    """Raises UserError where the compiler is not there, or is another one."""
    installed = folder / "installed"  # written last, from the requirements
    if not os.access(folder / "bin" / "python", os.X_OK) or not installed.exists():
        raise UserError(f"{folder}: the TPU's compiler is not installed: {_anew(folder)}")
    if installed.read_text() != (_ROOT / "requirements-preflight.txt").read_text():
        raise UserError(
            f"{folder}: is not what requirements-preflight.txt asks for: {_anew(folder)}"
        )


def compile_program(
    program: bytes, slice_name: str, deadline: Deadline, python: Path = PYTHON
) -> CompiledProgram | OutOfMemory | Refused:
    """Compiles a serialized HloModuleProto for a slice, or finds it in the cache.

    Raises:
        TimeLimitError: where the time is over; nothing of the compiler is left running.
        UserError: where there is no such slice, or the compiler breaks.
    """
    command = [str(python), str(_SCRIPT), slice_name, str(cache_folder())]
    # What this process's environment says of TPUs, XLA and Python is not meant for it.
    foreign = ("TPU_", "LIBTPU", "XLA_", "JAX_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    code, output, errors = _run(command, program, kept, deadline)
    lines = output.strip().splitlines()
    if code or not lines:
        what = f"signal {-code}" if code < 0 else f"exit code {code}"
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
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
        f"the TPU's compiler broke ({what}): {last_line[:300]}; make its environment anew: "
        f"{_anew(python.parents[1])}"
    )


def _anew(folder: Path) -> str:
    return f"rm -rf {folder} && make preflight-env (1.2 GB)"


def _run(
    command: list[str], program: bytes, env: dict[str, str], deadline: Deadline
) -> tuple[int, str, str]:
    """A process's exit code, output and errors; it and its children end with this one's wait."""
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
