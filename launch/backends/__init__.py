"""Where a run can be put. A further place: one file here, and one line."""

from importlib import import_module
from types import ModuleType

from launch.errors import LaunchError

BACKENDS = {
    "local": "launch.backends.local",
    "slurm": "launch.backends.slurm",
    "kubernetes": "launch.backends.kubernetes",
    "tpu-vm": "launch.backends.tpu_vm",
}


def load(name: str) -> ModuleType:
    """A module with `Options`, `check`, `render` and `Job`: see launch/backends/interface.py."""
    if name not in BACKENDS:
        raise LaunchError(f"--backend={name}: unknown; one of {', '.join(BACKENDS)}")
    return import_module(BACKENDS[name])
