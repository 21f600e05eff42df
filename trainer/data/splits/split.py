"""A split of a data set, as it was found on its storage. No TensorFlow."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer.config import Config
from trainer.errors import UserError


class Split(NamedTuple):
    """What is known of a split before anything is read but its listing.

    Attributes:
        name: the split's, such as train.
        place: where it is: a folder or a file; "" if it has no place.
        fingerprint: a hash of what the examples are, wherever they are.
        num_examples: of this split.
        class_names: one name per label.
        class_counts: examples of each class; None if only reading all of them would tell.
        channels: of the images, 1 or 3.
        image_shape: `(height, width, channels)` if all images have that shape, or None if they are
            encoded (JPEG, PNG, …) and of any size.
        content: what the source needs to open it: files, shards or arrays.
    """

    name: str
    place: str
    fingerprint: str
    num_examples: int
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...] | None
    channels: int
    image_shape: tuple[int, int, int] | None
    content: Any


def fingerprint(parts: Iterable[bytes | memoryview | str]) -> str:
    """Returns 16 hex digits of a hash of the parts, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))  # so that no other division has the same hash
        digest.update(data)
    return digest.hexdigest()[:16]


def local_folder(config: Config, data_dir: str) -> Path:
    """Returns `data.path` below `--data_dir`, or `data.path` itself if it is absolute.

    Raises:
        UserError: for an address: these files are listed and read as files.
    """
    for name, value in (("--data_dir", data_dir), ("data.path", config.data.path or "")):
        if "://" in value:
            raise UserError(
                f"{name}={value}: data set {config.data.name!r} is read from a folder, and this is "
                f"an address; mount it, or copy it to this machine"
            )
    return Path(data_dir).expanduser() / (config.data.path or "")


def numbered_classes(config: Config, reason: str) -> tuple[str, ...]:
    """Returns the numbers below `model.num_classes` as class names, for data without names.

    Raises:
        UserError: with the reason why the data don't tell, if `model.num_classes` is none.
    """
    if config.model.num_classes is None:
        raise UserError(f"model.num_classes=none: {reason}; --set model.num_classes=N gives it")
    return tuple(map(str, range(config.model.num_classes)))


def check_fit(
    config: Config,
    class_names: Sequence[str],
    num_examples: int,
    channels: int,
    image_shape: tuple[int, int, int] | None,
) -> None:
    """Checks a split against the config.

    Raises:
        UserError: for too few classes, another number of classes than the config's, no examples,
            or settings for images of another kind.
    """
    data = config.data
    if len(class_names) < 2:
        found = f"1 class ({class_names[0]})" if class_names else "no classes"
        raise UserError(
            f"data set {data.name!r}: has {found}, and training needs at least 2; check --data_dir "
            f"and data.path"
        )
    if config.model.num_classes not in (None, len(class_names)):
        raise UserError(
            f"model.num_classes is {config.model.num_classes}, but data set {data.name!r} has "
            f"{len(class_names)} classes: --set model.num_classes={len(class_names)}"
        )
    check_mean(config, channels)
    if not num_examples:
        raise UserError(f"data set {data.name!r}: has no examples")
    if image_shape is not None and data.crop == "random_resized":
        raise UserError(
            f"data.crop is 'random_resized', which needs encoded images of any size, but those of "
            f"data set {data.name!r} are all {image_shape}: use 'pad' or 'none'"
        )
    if image_shape is None and data.crop == "pad":
        raise UserError(
            f"data.crop is 'pad', which needs images of one size, but those of data set "
            f"{data.name!r} vary: use 'random_resized' or 'none'"
        )


def check_mean(config: Config, channels: int) -> None:
    """Raises UserError unless `data.mean` fits images of this many channels."""
    if len(config.data.mean) not in (1, channels):
        raise UserError(
            f"data.mean and data.std have {len(config.data.mean)} values, but the images of data "
            f"set {config.data.name!r} have {channels} channels"
        )
