"""The run's folder, for back ends that share storage with the launcher."""

from pathlib import Path

from launch.spec import JobSpec


def name(spec: JobSpec) -> str:
    """Returns the folder as the trainer gets it, absolute or relative to the code's folder."""
    return spec.workdir or f"runs/{spec.name}"


def checkpoint_mark(spec: JobSpec) -> str:
    """Returns a text that changes with every checkpoint, or "" if there is none."""
    try:
        return Path(spec.folder, name(spec), "checkpoints", "checkpoint").read_text(
            errors="replace"
        )
    except OSError:
        return ""
