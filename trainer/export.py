"""`python -m trainer.export`: writes a run's model for other libraries.

    python -m trainer.export --to=safetensors --run=runs/x --out=x.safetensors

Tensors have timm's names and PyTorch's layout: the `load_state_dict` of `timm.create_model(…)`
takes them, and `--set model.weights=x.safetensors` loads them here.
"""

import os
from pathlib import Path

from absl import flags

from trainer.cli import command
from trainer.cli.flags import OUT
from trainer.errors import EXIT_DONE, UserError

_TO = flags.DEFINE_enum("to", "safetensors", ["safetensors"], "The format.")
_RUN = flags.DEFINE_string("run", "", "A run's folder (its best checkpoint), or a checkpoint.")
_WEIGHTS = flags.DEFINE_enum(
    "weights",
    "auto",
    ["auto", "raw", "average"],
    "Which; auto: the moving average where there is one.",
)
flags.declare_key_flag("out")


def export() -> int:
    """Writes what the flags name, and returns the exit code."""
    if not _RUN.value:
        raise UserError("--run: must name a run's folder, or one of its checkpoints")
    if not OUT.value:
        raise UserError(f"--out: must name a file, such as --out=model.{_TO.value}")
    out = Path(OUT.value).expanduser()
    if out.suffix != f".{_TO.value}":
        raise UserError(f"--out={out}: must end in .{_TO.value}")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: the folder {out.parent} does not exist; make it first")
    command.quiet_libraries()
    from trainer.models.weights import export as weights_export

    average = {"auto": None, "raw": False, "average": True}[_WEIGHTS.value]
    print(weights_export.export(Path(os.path.expanduser(_RUN.value)), out, average))
    return EXIT_DONE


if __name__ == "__main__":
    command.run(export)
