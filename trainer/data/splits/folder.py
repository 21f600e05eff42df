"""Image files in folders named after their classes: `root/train/CLASS/*.jpg`, `root/val/…`; or
`root/CLASS/*.jpg`, split by a hash of the path.

The root is `data.path`: a path below `--data_dir`, or an absolute one.
"""

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from trainer.config import Config
from trainer.data.splits.split import Split, fingerprint, local_folder
from trainer.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")


class ImageFile(NamedTuple):
    path: str
    label: int


class Listing(NamedTuple):
    """The images of a split."""

    class_names: tuple[str, ...]
    files: tuple[ImageFile, ...]
    problems: tuple[str, ...]  # empty class folders, classes that are not trained on
    fingerprint: str  # of the files' names and sizes


def find(config: Config, split: str, data_dir: str) -> Split:
    """Lists `<root>/<split>`, or the part of `root` that the hash assigns to the split.

    Raises:
        UserError: if there are no images; and, unless bad examples are skipped, for a class folder
            without images, or a class that the training split does not have.
    """
    root = local_folder(config, data_dir)
    set_by = "--data_dir and data.path" if config.data.path else "--data_dir"
    listing = list_images(config, split, root, set_by)
    if listing.problems and config.data.on_bad_example == "fail":
        first, *others = listing.problems
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(
            f"{first}{more}; fix it, or leave it out with --set data.on_bad_example=skip"
        )
    for problem in listing.problems:
        print(f"left out: {problem}", flush=True)
    counts = Counter(file.label for file in listing.files)
    return Split(
        name=split,
        place=str(root if config.data.eval_fraction is not None else root / split),
        fingerprint=listing.fingerprint,
        num_examples=len(listing.files),
        class_names=listing.class_names,
        class_counts=tuple(counts[label] for label in range(len(listing.class_names))),
        channels=config.data.channels,
        image_shape=None,
        content=listing.files,
    )


def list_images(config: Config, split: str, root: Path, root_set_by: str) -> Listing:
    """Lists the files of a split, in the order of their paths' hashes.

    So the order neither depends on the file system nor follows the classes.

    Args:
        root_set_by: the flag that sets `root`, for messages.

    Raises:
        UserError: if there are none.
    """
    data = config.data
    if data.eval_fraction is None:
        folder, class_folder = root / split, root / data.train_split
    else:
        folder = class_folder = root
    class_names = _folders(class_folder, config, root_set_by)
    labels = {name: label for label, name in enumerate(class_names)}
    problems = []
    by_hash: list[tuple[bytes, ImageFile]] = []
    sizes: dict[bytes, int] = {}
    for name in class_names if folder == class_folder else _folders(folder, config, root_set_by):
        names = _files(folder / name)
        if not names:
            problems.append(f"{folder / name}: has no images")
        elif name not in labels:
            problems.append(f"{folder / name}: a class that {class_folder} does not have")
            continue
        for file, size in names:
            path = f"{name}/{file}"
            digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()
            sizes[digest] = size
            if data.eval_fraction is None or _is_held_out(digest, data.eval_fraction) == (
                split == data.eval_split
            ):
                by_hash.append((digest, ImageFile(f"{folder}/{path}", labels[name])))
    if not by_hash and data.eval_fraction is not None and any(_files(folder / c) for c in labels):
        raise UserError(
            f"data.eval_fraction ({data.eval_fraction}): leaves no image for split {split!r} of "
            f"{folder}; try a fraction nearer to 0.5"
        )
    if not by_hash:
        raise UserError(
            f"{folder}: has no images in folders of classes (CLASS/*{', *'.join(EXTENSIONS)})"
        )
    by_hash.sort()
    identity = fingerprint(digest + sizes[digest].to_bytes(8, "big") for digest, _ in by_hash)
    return Listing(class_names, tuple(file for _, file in by_hash), tuple(problems), identity)


def _is_held_out(digest: bytes, fraction: float) -> bool:
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _folders(folder: Path, config: Config, root_set_by: str) -> tuple[str, ...]:
    try:
        entries = os.scandir(folder)
    except OSError as error:
        hint = f"; the folder of the data is set by {root_set_by}"
        if config.data.eval_fraction is None:
            hint += (
                "; images must be in <root>/<split>/<class>/, with the splits "
                f"{config.data.train_split!r} and {config.data.eval_split!r} (data.train_split, "
                "data.eval_split), or in <root>/<class>/ with data.eval_fraction"
            )
        raise UserError(f"{folder}: cannot be listed ({error.strerror}){hint}") from None
    with entries:
        return tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(".")))


def _files(folder: Path) -> list[tuple[str, int]]:
    """Returns the names and sizes of the images in a folder."""
    try:
        with os.scandir(folder) as entries:
            # Hidden files are not the user's: a Mac puts ._001.jpg next to 001.jpg.
            files = [entry for entry in entries if not entry.name.startswith(".")]
            return [
                (e.name, e.stat().st_size) for e in files if e.name.lower().endswith(EXTENSIONS)
            ]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from None
