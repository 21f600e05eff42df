"""The back ends. To add one: one file, or a folder of several, and one line here."""

from importlib import import_module
from types import ModuleType

from launch.errors import LaunchError

BACKENDS = {
    "local": "launch.local",
    "slurm": "launch.slurm",
    "kubernetes": "launch.kubernetes.backend",
    "tpu-vm": "launch.tpu.backend",
}


def load(name: str) -> ModuleType:
    """Imports a back end: a module with `Options`, `check`, `render` and `Job` (interface.py).

    Raises:
        LaunchError: if there is no back end of this name.
    """
    if name not in BACKENDS:
        raise LaunchError(f"--backend={name}: unknown; one of {', '.join(BACKENDS)}")
    return import_module(BACKENDS[name])
