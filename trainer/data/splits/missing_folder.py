"""What to write about a folder of a split that is not there: what there is, and what was meant."""

import contextlib
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.data.splits.image_files import READ, is_folder, is_users, named

_TRAIN = ("train", "training")
_EVAL = ("val", "valid", "validation", "eval", "test", "testing", "dev")


class Flags(NamedTuple):
    """How a command sets what a message advises."""

    root: str  # the folder of the data
    eval_fraction: str
    train_split: str  # with the names of the splits as {train} and {eval}
    eval_split: str  # likewise


def folders_in(folder: Path) -> tuple[list[str], int]:
    """Returns the names of the user's folders in a folder, sorted, and its number of images.

    Raises:
        OSError: if it cannot be listed.
    """
    with os.scandir(folder) as scanned:
        entries = list(scanned)
    folders = sorted(entry.name for entry in entries if is_users(entry.name) and is_folder(entry))
    images = [e.name for e in entries if e.name.lower().endswith(READ) and not is_folder(e)]
    return folders, sum(not name.startswith(".") for name in images)


def advice(folder: Path, root: Path, splits: tuple[str, str | None], flags: Flags) -> str:
    """Returns what there is instead of `folder`, a split of `root`, and what to do; in a line.

    Args:
        splits: the training split and the evaluation split that were asked for, if any.
    """
    set_by = f"the folder of the data is set by {flags.root}"
    if not root.is_dir():
        near = difflib.get_close_matches(root.name, _folders(root.parent), n=1)
        return f"did you mean {root.parent / near[0]}? {set_by}" if near else set_by
    if folder == root or folder.is_dir():  # it may not be read
        return set_by
    above = root.absolute().parent
    if root.absolute().name in (*splits, *_TRAIN, *_EVAL) and (above / folder.name).is_dir():
        return f"{above} has {folder.name}: name that folder with {flags.root}"
    names = _folders(root)
    with_images = {name for name in names if _has_images(root / name)}
    others = [name for name in names if name not in with_images and name not in splits]
    if near := _near(folder.name, others, _TRAIN if folder.name == splits[0] else _EVAL):
        trains = folder.name == splits[0]
        train, evaluation = (near, splits[1]) if trains else (splits[0], near)
        flag = flags.train_split if trains else flags.eval_split
        return f"{root} has {near}: {flag.format(train=train, eval=evaluation)}"
    if with_images:
        train = flags.train_split.format(train=root.absolute().name, eval="")
        without = f"name {above} with {flags.root}, and {train}"  # evaluation
        held_out = f"{flags.eval_fraction}0.1"
        what = without if splits[1] is None else held_out
        return f"{root} has folders of images without splits: {what}"
    there = f"it has the folders {named(names)}" if names else "it has no folders"
    both = dict.fromkeys((flags.train_split, flags.eval_split))  # of prepare, they are one
    set_splits = " ".join(flag.format(train="…", eval="…") for flag in both)
    return (
        f"{root} must have the splits {' and '.join(repr(name) for name in splits if name)}, or "
        f"others that are set with {set_splits}, and these a folder for each class; {there}; "
        f"{set_by}"
    )


def are_splits(folder: Path, class_names: Sequence[str]) -> bool:
    """Returns whether folders in the place of classes are splits: by name, and without images of
    their own."""
    return (
        len(class_names) > 1
        and all(name.lower() in (*_TRAIN, *_EVAL) for name in class_names)
        and not any(_has_images(folder / name) for name in class_names)
    )


def _near(split: str, names: Sequence[str], usual: Sequence[str]) -> str | None:
    """Returns the folder that was meant by a split: one with a usual name, or a similar one."""
    found = {name.lower(): name for name in names}
    if name := next((found[name] for name in usual if name in found), None):
        return name
    return next(iter(difflib.get_close_matches(split, names, n=1, cutoff=0.7)), None)


def _folders(folder: Path) -> list[str]:
    try:
        return folders_in(folder)[0]
    except OSError:
        return []


def _has_images(folder: Path) -> bool:
    """Returns whether a folder has an image directly in it; stops at the first."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return any(e.name.lower().endswith(READ) and not e.name.startswith(".") for e in entries)
    return False
