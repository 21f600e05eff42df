"""What weights were trained with, read from a run or from what it exported. No TensorFlow.

A run's checkpoints, its config.json and the files of `trainer.export` hold the same metadata: see
`run_metadata` in trainer/run/identity.py.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trainer import config as config_lib
from trainer.config import Config
from trainer.errors import UserError
from trainer.models.weights import tensor_file


class Trained(NamedTuple):
    """What a run was trained with."""

    origin: str  # the file that says so
    metadata: Mapping[str, Any]

    @property
    def values(self) -> Mapping[str, Any]:
        """The run's config by field, as it was saved."""
        return self.metadata["config"]

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.metadata["class_names"])

    @property
    def channels(self) -> int:
        """The channels of the images, 1 or 3."""
        return self.metadata["channels"]

    @property
    def config(self) -> Config:
        """The run's config: the model, image size, crop, mean and deviation. `model.num_classes` is
        a number.

        Raises:
            UserError: if the config is another version's.
        """
        try:
            config = config_lib.from_dict(self.values)
        except UserError as error:
            raise UserError(f"{self.origin}: its config cannot be used: {error}") from None
        return config_lib.with_num_classes(config, self.class_names)


def from_metadata(origin: str, metadata: Any) -> Trained | None:
    """Returns what the metadata say, or None if they are not a run's."""
    values = metadata if isinstance(metadata, dict) else {}
    config, names = values.get("config"), values.get("class_names")
    is_run = (
        isinstance(config, dict)
        and "model.name" in config
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and values.get("channels") in (1, 3)
    )
    return Trained(origin, values) if is_run else None


def find_trained(path: Path) -> Trained | None:
    """Reads what weights were trained with, without TensorFlow.

    Args:
        path: a run's folder, its `checkpoints`, a checkpoint in them, or a file of tensors.

    Returns:
        None for another library's file, for a path that does not exist, and for a checkpoint
        outside a run's folder, which `saved.read_trained` reads.
    """
    if path.suffix.lower() in tensor_file.SUFFIXES:
        return _of_export(path)
    for folder in (path, *path.parents[:3]):
        in_run = path == folder or path.is_relative_to(folder / "checkpoints")
        if in_run and (found := _of_config_file(folder / "config.json")):
            return found
    return None


def _of_config_file(file: Path) -> Trained | None:
    try:
        return from_metadata(str(file), json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # damaged: the checkpoints hold the same
        return None


def _of_export(file: Path) -> Trained | None:
    try:
        found = {
            name: json.loads(text)
            for name, text in tensor_file.metadata(file).items()
            if name in ("config", "class_names", "channels")
        }
    except ValueError:  # another library's, under the same names
        return None
    return from_metadata(str(file), found)


def checkpoint_places(path: Path, expected: str) -> list[Path]:
    """Returns where the checkpoint that a path names may be: itself, or folders, the first first.

    Args:
        path: a run's folder (its best checkpoint, or else the last), a folder of checkpoints (the
            last), or a checkpoint, such as `checkpoints/ckpt-561`.
        expected: what the path must be, for the error's text.

    Raises:
        UserError: if there is nothing.
    """
    path = path.with_suffix("") if path.suffix == ".index" else path
    try:
        if Path(f"{path}.index").exists():
            return [path]
        folders = (path / "checkpoints" / "best", path / "checkpoints", path)
        # TensorFlow's file that names the checkpoints of its folder.
        if found := [folder for folder in folders if (folder / "checkpoint").exists()]:
            return found
        there = "it does not exist"
        if path.exists():
            there = "it holds no checkpoint" if path.is_dir() else "it is another kind of file"
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    raise UserError(f"{path}: must be {expected}, but {there}")
