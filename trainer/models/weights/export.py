"""Writes a run's model for other libraries."""

import json
from pathlib import Path

from trainer.errors import UserError
from trainer.models.weights import tensor_file
from trainer.models.weights.names import libraries, torch_tensors
from trainer.models.weights.saved import read_checkpoint


def export(run: Path, out: Path, average: bool | None = None) -> str:
    """Writes the model of a run, or of a checkpoint, to a safetensors file.

    Tensors have the names of the family's first library and PyTorch's layout. The file's metadata
    are the checkpoint's: config, class names, mean and standard deviation.

    Args:
        average: write the moving average of the weights; None: if there is one.

    Returns:
        A line for the user: what was written.

    Raises:
        UserError: if there is no checkpoint to read, or the file cannot be written.
    """
    try:
        saved = read_checkpoint(run, average)
    except UserError as error:
        raise UserError(f"--run={error}") from None
    name = saved.config.model.name
    tensors = torch_tensors(name, saved.model)
    metadata = {key: json.dumps(value) for key, value in saved.trained.metadata.items()}
    tensor_file.write(out, tensors, {"format": "pt", **metadata})
    library = next(iter(libraries(name)))
    return f"{out}: {name}, {len(tensors)} tensors by {library}'s names; {saved.origin}"
