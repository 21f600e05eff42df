"""What a process runs in: its command, versions and machine. No TensorFlow."""

import contextlib
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import trainer
from trainer.units import bytes_text

_PACKAGES = ("tensorflow", "tf-keras", "tensorflow-datasets", "numpy")
# The names of variables that change what TensorFlow, CUDA or this project does. Values of others
# may be secret, and are not recorded: those of Terraform begin with TF_ too.
_PREFIXES = (
    *("TF_CONFIG", "TF_XLA_", "TF_ENABLE_", "TF_DISABLE_", "TF_DETERMINISTIC_", "TF_FORCE_"),
    *("TF_GPU_", "TF_CPU_", "TF_CUDA_", "TF_CUDNN_", "TF_CPP_", "TF_NUM_", "TF_USE_", "TF_MAX_"),
    *("XLA_", "CUDA_", "NVIDIA_", "NCCL_", "TPU_", "TFDS_", "OMP_", "KMP_", "ONEDNN_"),
)
_NVIDIA = Path("/proc/driver/nvidia")
_GIT_TIMEOUT_S = 5.0


def environment() -> dict[str, Any]:
    """Returns the command, the folder it was typed in, versions, variables and the machine."""
    return {
        "command": command_text(),
        "cwd": str(Path.cwd()),
        "versions": versions(),
        "commit": _commit(Path(trainer.__file__).parent),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_PREFIXES)},
        "machine": machine(),
        "pid": os.getpid(),
    }


def command_text() -> str:
    """Returns the command of this process, as one could type it."""
    program, *arguments = sys.orig_argv
    if Path(program).name.startswith("python"):
        program = "python"
        if arguments and Path(arguments[0]).parent == Path(sys.executable).parent:
            program, *arguments = Path(arguments[0]).name, *arguments[1:]  # trainer-train
    return shlex.join([program, *arguments])


def versions() -> dict[str, str]:
    """Returns the versions of this project, Python and the libraries that decide results."""
    found = {"trainer": trainer.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if driver := _driver():
        found["nvidia driver"] = driver
    return found


def _driver() -> str:
    """Returns the version of NVIDIA's kernel module; "" without one."""
    try:
        words = (_NVIDIA / "version").read_text(encoding="utf-8").split()
    except OSError:
        return ""
    return next((word for word in words if word[0].isdigit() and "." in word), "")


def _commit(folder: Path) -> str:
    """Returns the git commit of the project's checkout, `+` if files differ from it; "" if none."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # not an environment in another checkout
        return git("describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def machine() -> dict[str, Any]:
    """Returns the machine's name, system, processors, memory and NVIDIA GPUs."""
    gpus = [_value(path, "Model") for path in sorted(_NVIDIA.glob("gpus/*/information"))]
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": _value(Path("/proc/cpuinfo"), "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": bytes_text(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "gpus": gpus,
    }


def _value(path: Path, key: str) -> str:
    """Returns the first value of a key in lines `key : value`; "" if there is none."""
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""
