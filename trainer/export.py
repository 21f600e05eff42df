"""`python -m trainer.export`: a run's model, for other libraries.

    python -m trainer.export --to=safetensors --run=runs/x --out=x.safetensors

Tensors have timm's names and PyTorch's layout, so that `timm.create_model(…)` takes them by
`load_state_dict`, and `--set model.weights=x.safetensors` takes them back.
"""

import json
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
    """Does what the flags say and returns the exit code."""
    if not _RUN.value:
        raise UserError("--run: must name a run's folder, or one of its checkpoints")
    if not OUT.value:
        raise UserError(f"--out: must name a file, as --out=model.{_TO.value}")
    out = Path(OUT.value).expanduser()
    if out.suffix != f".{_TO.value}":
        raise UserError(f"--out={out}: must end in .{_TO.value}")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: the folder {out.parent} is not there; make it first")
    command.quiet_libraries()
    from trainer.models.weights import tensor_file
    from trainer.models.weights.load import read_checkpoint, torch_tensors
    from trainer.models.weights.names import libraries

    average = {"auto": None, "raw": False, "average": True}[_WEIGHTS.value]
    try:
        saved = read_checkpoint(Path(os.path.expanduser(_RUN.value)), average)
    except UserError as error:
        raise UserError(f"--run: {error}") from None
    tensors = torch_tensors(saved.config, saved.model)
    metadata = {name: json.dumps(value) for name, value in saved.metadata.items()}
    tensor_file.write(out, tensors, {"format": "pt", **metadata})
    library = next(iter(libraries(saved.config.model.name)))
    name = saved.config.model.name
    print(f"{out}: {name}, {len(tensors)} tensors by {library}'s names; {saved.what}")
    return EXIT_DONE


if __name__ == "__main__":
    command.run(export)
