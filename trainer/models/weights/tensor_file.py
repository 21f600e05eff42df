"""Files of named tensors, as PyTorch's libraries write them, read and written with NumPy.

A `.pth` is read by PyTorch itself, if it is installed, with `weights_only=True`: a pickle could run
any code.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # teaches NumPy the name bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trainer.errors import UserError
from trainer.files import replacing

PICKLES = (".pth", ".pt", ".bin", ".tar")
SUFFIXES = (".safetensors", *PICKLES)
# Keys of the weights in other trainers' checkpoints, the moving average first. Prefixes of
# PyTorch's wrappers for parallel, averaged and compiled models.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
COUNTER = "num_batches_tracked"  # of PyTorch's batch norm, which nothing here needs
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a file by name, without the prefixes of PyTorch's wrappers.

    Raises:
        UserError: if the file cannot be read, or holds no tensors.
    """
    check_readable(path)
    is_pickle = path.suffix.lower() in PICKLES
    tensors = _read_pickle(path) if is_pickle else _read_safetensors(path)
    found = _plain_names(tensors)
    if not found:
        raise UserError(f"{path}: holds no tensors; is it a model's weights?")
    return {plain: tensors[name] for name, plain in found.items()}


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Reads the shapes of the tensors that `read` returns, from a safetensors file.

    Raises:
        UserError: if the file cannot be read.
    """
    check_readable(path)
    with _opened(path) as file:
        return {
            plain: tuple(file.get_slice(name).get_shape())
            for name, plain in _plain_names(file.keys()).items()
        }


def check_readable(path: Path) -> None:
    """Raises UserError if a file cannot be opened."""
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def hash_of_model(shapes: Mapping[str, Sequence[int]]) -> str:
    """Returns 16 hex digits that depend on a model's architecture, but not on its numbers of
    classes and image channels: on the names of its tensors, and on the widths of its batch norms.

    The counters of PyTorch's batch norm are left out: files of other libraries lack them.
    """
    lines = [
        f"{name} {list(shape)}" if name.endswith("running_mean") else name
        for name, shape in sorted(shapes.items())
        if not name.endswith(COUNTER)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _plain_names(names: Iterable[str]) -> dict[str, str]:
    """Returns each name without the prefixes of PyTorch's wrappers, by the full one."""
    plain = {name: name for name in names if name != "n_averaged"}  # an averaged model's counter
    while plain and (prefix := _shared_prefix(plain.values())):
        plain = {name: value.removeprefix(prefix) for name, value in plain.items()}
    return plain


def _shared_prefix(names: Iterable[str]) -> str | None:
    return next((p for p in _PREFIXES if all(name.startswith(p) for name in names)), None)


def metadata(path: Path) -> dict[str, str]:
    """Reads the metadata that `write` puts into a safetensors file.

    Returns:
        Texts by name; empty for another file, or one that cannot be read.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    """Opens a safetensors file; errors inside the block are those of a damaged one."""
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: is not a safetensors file, or damaged ({reason})") from None


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"{path}: is in PyTorch's format and needs PyTorch to read: pip install torch, or use "
            f"the weights as .safetensors"
        ) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        for name in _NESTED:
            if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
                content = content[name]
                break
        if not isinstance(content, Mapping):
            raise UserError(f"{path}: holds a {type(content).__name__}, not tensors by name")
        return {
            name: (value.float() if value.is_floating_point() else value).detach().numpy()
            for name, value in content.items()
            if isinstance(name, str) and isinstance(value, torch.Tensor)
        }
    except UserError:
        raise
    except Exception as error:  # torch.load raises many kinds
        lines = _COLOUR.sub("", str(error)).splitlines() or [type(error).__name__]
        raise UserError(
            f"{path}: cannot be read as weights alone ({lines[0][:200]}); save the model's "
            f"state_dict, or use the weights as .safetensors"
        ) from None


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Writes a safetensors file, whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        with replacing(path) as new:
            save_file(dict(tensors), new, metadata={k: str(v) for k, v in metadata.items()})
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(f"{path}: cannot be written ({reason})") from None
