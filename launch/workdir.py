"""The run's folder, where the back end's processes and the launcher see the same storage."""

from pathlib import Path

from launch.spec import JobSpec


def name(spec: JobSpec) -> str:
    """As the trainer is given it: from the code's folder on, where it is relative."""
    return spec.workdir or f"runs/{spec.name}"


def checkpoint_mark(spec: JobSpec) -> str:
    """Changes with every new checkpoint; "" where there is none."""
    try:
        return Path(spec.folder, name(spec), "checkpoints", "checkpoint").read_text(
            errors="replace"
        )
    except OSError:
        return ""
