"""What `trainer.prepare` is to read and write. No TensorFlow, so that a mistake shows at once."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from trainer.config import Config, DataConfig
from trainer.data.splits.folder import Listing, list_images
from trainer.data.splits.image_files import CONVERTED, READ
from trainer.data.splits.missing_folder import Flags

_FLAGS = Flags("--source", "--eval_fraction=", "--splits={train},{eval}", "--splits={train},{eval}")


class Request(NamedTuple):
    """What to prepare, and how."""

    source: Path
    out: Path | None  # None: only verify
    splits: tuple[str, str] = ("train", "val")  # for training, for evaluation
    eval_fraction: float | None = None
    shard_mb: float = 128.0
    threads: int = 1
    skip: bool = False  # whether to leave bad images out


def list_splits(request: Request) -> dict[str, Listing]:
    """Lists the images of both splits, those that can be converted included.

    Raises:
        UserError: if the source cannot be read, or has no images.
    """
    data = DataConfig(
        name="folder",
        train_split=request.splits[0],
        eval_split=request.splits[1],
        eval_fraction=request.eval_fraction,
    )
    config = dataclasses.replace(Config(), data=data)
    return {
        split: list_images(config, split, request.source, _FLAGS, READ + CONVERTED)
        for split in request.splits
    }
