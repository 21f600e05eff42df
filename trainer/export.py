"""`python -m trainer.export`: writes a run's model as a file for other libraries.

    python -m trainer.export --to=safetensors --run=runs/x --out=x.safetensors

Tensors have timm's names and PyTorch's layout: `timm.create_model(…).load_state_dict(…)` loads the
file, and so does `--set model.weights=x.safetensors`.
"""

import os
from pathlib import Path

from absl import flags

from trainer.cli import command
from trainer.cli.quiet import quiet_start
from trainer.errors import EXIT_DONE, UserError

FLAGS = flags.FlagValues()
_TO = flags.DEFINE_enum("to", "safetensors", ["safetensors"], "Output format.", flag_values=FLAGS)
_RUN = flags.DEFINE_string(
    "run", "", "A run's folder, for its best checkpoint; or a checkpoint.", flag_values=FLAGS
)
_OUT = flags.DEFINE_string("out", "", "The file to write.", flag_values=FLAGS)
_WEIGHTS = flags.DEFINE_enum(
    "weights",
    "auto",
    ["auto", "raw", "average"],
    "Which weights; auto: the moving average if the run has one.",
    flag_values=FLAGS,
)


def export() -> int:
    """Writes what the flags name, and returns the exit code."""
    if not _RUN.value:
        raise UserError("--run: must name a run's folder, or one of its checkpoints")
    if not _OUT.value:
        raise UserError(f"--out: must name a file, such as --out=model.{_TO.value}")
    out = Path(_OUT.value).expanduser()
    if out.suffix != f".{_TO.value}":
        raise UserError(f"--out={out}: must end in .{_TO.value}")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: the folder {out.parent} does not exist; make it first")
    with quiet_start():
        from trainer.models.weights import export as weights_export

    average = {"auto": None, "raw": False, "average": True}[_WEIGHTS.value]
    print(weights_export.export(Path(os.path.expanduser(_RUN.value)), out, average))
    return EXIT_DONE


def main() -> None:
    """Runs the verb and exits."""
    command.run("trainer.export", export, FLAGS)


if __name__ == "__main__":
    main()
