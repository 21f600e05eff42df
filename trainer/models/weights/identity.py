"""What the weights that a run begins with are, wherever they lie. No TensorFlow."""

import contextlib
import functools
import hashlib
import os
import re
from pathlib import Path

from trainer.errors import UserError

_POINTER = re.compile(r'^model_checkpoint_path: "(.*)"$', re.MULTILINE)


def weights_identity(path: str | None) -> dict[str, str] | None:
    """Returns the path of `model.weights` and a fingerprint of what lies there.

    Of a file, the fingerprint is a hash of its content; of a run or a checkpoint, a hash of the
    checkpoint's index, which holds checksums of all tensors. It is "" if there is nothing to read:
    a run that resumes does not need the weights that it began with.

    Returns:
        None for no path: the run starts from random weights.
    """
    if path is None:
        return None
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        file = _index_of(file)
    try:
        status = file.stat()
        digest = _digest(file, status.st_size, status.st_mtime_ns)
    except OSError:
        digest = ""
    return {"path": path, "fingerprint": digest}


@functools.lru_cache
def _digest(file: Path, size: int, modified: int) -> str:
    """Returns the hash of a file of this size and time: a start asks twice, of up to gigabytes."""
    del size, modified
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


def _index_of(path: Path) -> Path:
    """Returns the index of the checkpoint that stands for a run's folder, or for a checkpoint."""
    from trainer.models.weights.trained import checkpoint_places  # NumPy: 0.2 s

    try:
        places = checkpoint_places(path, "a run's folder or a checkpoint")
    except UserError:
        return path
    for place in places:
        index = Path(f"{place}.index")
        if index.exists():
            return index
        with contextlib.suppress(OSError, UnicodeDecodeError):  # a damaged pointer
            if found := _POINTER.search((place / "checkpoint").read_text(encoding="utf-8")):
                return place / f"{found[1]}.index"
    return path
