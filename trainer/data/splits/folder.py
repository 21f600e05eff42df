"""Image files in folders named after their classes: `root/train/CLASS/*.jpg`, `root/val/…`; or
`root/CLASS/*.jpg`, of which a share is held out, chosen by a hash of the path.

The root is `data.path`: a path below `--data_dir`, or an absolute one.
"""

import hashlib
import os
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from trainer.config import Config
from trainer.data.splits.image_files import (
    CONVERTED,
    READ,
    ClassFiles,
    find_images,
    has_images,
    named,
    sizes_of,
    unread_line,
)
from trainer.data.splits.missing_folder import Flags, advice, are_splits, folders_in
from trainer.data.splits.split import Split, fingerprint, local_folder
from trainer.errors import UserError

_AT_ONCE = 16  # listings and sizes, which wait for a network or a disk
_SIZES = 1000  # files whose sizes are asked for by one thread


class Listing(NamedTuple):
    """The images of a split, in the order of their paths' hashes."""

    class_names: tuple[str, ...]  # the folders of the training split that have images
    paths: list[str]
    labels: list[int]
    sizes: list[int]  # bytes
    problems: tuple[str, ...]  # class folders without images, classes that are not trained on
    notes: tuple[str, ...]  # what else the user should know, a line each
    fingerprint: str  # of the files' names and sizes


def find(config: Config, split: str, data_dir: str) -> Split:
    """Lists `<root>/<split>`, or the part of `root` that the hash assigns to the split.

    Prints what is left out.

    Raises:
        UserError: if there are no images; and, unless bad examples are skipped, for a class folder
            without images, or a class that the training split does not have.
    """
    data = config.data
    root = local_folder(config, data_dir)
    flags = Flags(
        root="--data_dir and data.path" if data.path else "--data_dir",
        eval_fraction="--set data.eval_fraction=",
        train_split="--set data.train_split={train}",
        eval_split="--set data.eval_split={eval}",
    )
    listing = list_images(config, split, root, flags)
    if listing.problems and data.on_bad_example == "fail":
        first, *others = listing.problems
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(
            f"{first}{more}; fix it, or leave it out with --set data.on_bad_example=skip"
        )
    left_out = [f"left out: {problem}" for problem in listing.problems]
    if data.eval_fraction is not None and split != data.train_split:
        left_out = []  # the training split has the same folders
    for line in (*left_out, *listing.notes):
        print(line, flush=True)
    place = root if data.eval_fraction is not None else root / split
    num_classes = len(listing.class_names)
    if listing.problems and config.model.num_classes not in (None, num_classes):
        raise UserError(
            f"model.num_classes is {config.model.num_classes}, but {place} has {num_classes} "
            f"classes without what is left out: --set model.num_classes={num_classes}"
        )
    counts = Counter(listing.labels)
    return Split(
        name=split,
        place=str(place),
        fingerprint=listing.fingerprint,
        num_examples=len(listing.paths),
        class_names=listing.class_names,
        class_counts=tuple(counts[label] for label in range(num_classes)),
        channels=data.channels,
        image_shape=None,
        content=(listing.paths, listing.labels),
    )


def list_images(
    config: Config, split: str, root: Path, flags: Flags, endings: Sequence[str] = READ
) -> Listing:
    """Lists the files of a split, in the order of their paths' hashes.

    So the order neither depends on the file system nor follows the classes.

    Args:
        flags: for messages.
        endings: of the files that are images.

    Raises:
        UserError: if there are none.
    """
    data = config.data
    in_one = data.eval_fraction is not None
    folder, class_folder = (root, root) if in_one else (root / split, root / data.train_split)
    names, strays = _class_folders(folder, config, root, flags)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            found = _find_images(pool, folder, names, endings)
            if folder == class_folder:
                class_names = [name for name in names if found[name].names]
            else:
                others, _ = _class_folders(class_folder, config, root, flags)
                class_names = _with_images(pool, class_folder, others, endings)
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be listed ({error.strerror})") from None
        digests, paths, labels, entries = _columns(config, split, folder, class_names, found)
        parts = [entries[first : first + _SIZES] for first in range(0, len(entries), _SIZES)]
        sizes = [size for part in pool.map(sizes_of, parts) for size in part]
    unread = sum((files.unread for files in found.values()), Counter[str]())
    can_convert = [ending for ending in CONVERTED if ending not in endings]
    not_read = [unread_line(unread, can_convert)] if unread else []
    if strays:
        not_read += [f"{strays} image(s) are in no class folder, and are not read"]
    if not paths and any(files.names for files in found.values()) and in_one:
        raise UserError(
            f"data.eval_fraction ({data.eval_fraction}): leaves no image for split {split!r} of "
            f"{folder}, where each class has a single image"
        )
    if not paths:
        raise UserError(
            f"{folder}: has no images in folders of classes (CLASS/*{', *'.join(endings)})"
            + "".join(f"; {line}" for line in not_read)
        )
    notes = [f"{folder}: {line}" for line in not_read]
    if split != data.train_split:
        # If all images are in one folder, the training split has these notes.
        notes = ([] if in_one else notes) + _unmeasured(folder, split, class_names, labels, in_one)
    order = sorted(range(len(digests)), key=digests.__getitem__)
    sizes = [sizes[index] for index in order]
    return Listing(
        tuple(class_names),
        [paths[index] for index in order],
        [labels[index] for index in order],
        sizes,
        tuple(_problems(folder, class_folder, class_names, found)),
        tuple(notes),
        fingerprint(
            [
                b"".join([digests[index] for index in order]),
                struct.pack(f">{len(sizes)}Q", *sizes),
            ]
        ),
    )


def _class_folders(folder: Path, config: Config, root: Path, flags: Flags) -> tuple[list[str], int]:
    """Returns the folders in a folder, sorted, and how many images lie next to them."""
    splits = (config.data.train_split, config.data.eval_split)
    try:
        names, strays = folders_in(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror}); {advice(folder, root, splits, flags)}"
        ) from None
    if are_splits(folder, names):
        in_one = config.data.eval_fraction is not None
        fraction = flags.eval_fraction.removesuffix("=")
        raise UserError(
            f"{folder}: has the splits {named(names)} instead of classes: "
            + (f"leave out {fraction}" if in_one else f"name this folder with {flags.root}")
        )
    return names, strays


def _find_images(
    pool: Executor, folder: Path, names: Sequence[str], endings: Sequence[str]
) -> dict[str, ClassFiles]:
    listed = pool.map(lambda name: find_images(f"{folder}/{name}", endings), names)
    return dict(zip(names, listed, strict=True))


def _with_images(
    pool: Executor, folder: Path, names: Sequence[str], endings: Sequence[str]
) -> list[str]:
    have = pool.map(lambda name: has_images(f"{folder}/{name}", endings), names)
    return [name for name, has in zip(names, have, strict=True) if has]


def _columns(
    config: Config,
    split: str,
    folder: Path,
    class_names: Sequence[str],
    found: dict[str, ClassFiles],
) -> tuple[list[bytes], list[str], list[int], list[os.DirEntry[str]]]:
    """Returns the hash, the path, the label and the entry of each image of a split."""
    fraction = config.data.eval_fraction
    digests: list[bytes] = []
    paths: list[str] = []
    labels: list[int] = []
    entries: list[os.DirEntry[str]] = []
    for label, name in enumerate(class_names):
        if name not in found:
            continue
        files = found[name]
        hashes = [
            hashlib.sha256(f"{name}/{file}".encode("utf-8", "surrogateescape")).digest()
            for file in files.names
        ]
        chosen = range(len(hashes))
        if fraction is not None:
            held_out = _held_out(hashes, fraction)
            evaluates = split == config.data.eval_split
            chosen = [index for index in chosen if (hashes[index] in held_out) == evaluates]
        above = f"{folder}/{name}/"
        digests += [hashes[index] for index in chosen]
        paths += [above + files.names[index] for index in chosen]
        labels += [label] * len(chosen)
        entries += [files.entries[index] for index in chosen]
    return digests, paths, labels, entries


def _held_out(hashes: Sequence[bytes], fraction: float) -> set[bytes]:
    """Returns the smallest hashes of a class: the share to hold out, but neither none nor all."""
    number = min(max(round(fraction * len(hashes)), 1), len(hashes) - 1)
    return set(sorted(hashes)[:number])


def _problems(
    folder: Path,
    class_folder: Path,
    class_names: Sequence[str],
    found: dict[str, ClassFiles],
) -> Iterator[str]:
    known = set(class_names)
    for name, files in found.items():
        if not files.names:
            unread = f": {unread_line(files.unread, ())}" if files.unread else ""
            yield f"{folder / name}: has no images{unread}"
        elif name not in known:
            yield f"{folder / name}: a class that {class_folder} does not have"


def _unmeasured(
    folder: Path, split: str, class_names: Sequence[str], labels: Sequence[int], in_one: bool
) -> list[str]:
    """Returns a line on the classes that an evaluation split does not have, if there are any."""
    present = set(labels)
    absent = [name for label, name in enumerate(class_names) if label not in present]
    which = f"has no images of {len(absent)} of {len(class_names)} classes: {named(absent)}"
    if not absent:
        return []
    if in_one:
        return [f"{folder}: split {split!r} {which}; a class's only image stays in training"]
    return [f"{folder}: {which}; their accuracy is not measured"]
