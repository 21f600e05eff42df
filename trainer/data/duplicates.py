"""Finds images that are the same to the byte: in two classes, or trained on and evaluated on."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.data.splits.image_files import named

_SHOWN = 5  # lines on the terminal


class Place(NamedTuple):
    """Where an image is."""

    split: str
    class_name: str
    path: str


# The places of each image that is there more than once, by its digest.
Duplicates = dict[str, list[Place]]


def digest_of(content: bytes) -> str:
    """Returns a hash of 16 bytes, as hex digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def find_duplicates(images: Iterable[tuple[str, Place]]) -> Duplicates:
    """Returns the images that are there more than once, of digests and places."""
    first: dict[str, Place] = {}
    duplicates: Duplicates = {}
    for digest, place in images:
        if digest in first:
            duplicates.setdefault(digest, [first[digest]]).append(place)
        else:
            first[digest] = place
    return duplicates


def across(duplicates: Duplicates) -> Duplicates:
    """Returns those that are in more than one class or split."""
    return {digest: places for digest, places in duplicates.items() if _spread(places) > 1}


def report(duplicates: Duplicates, root: Path) -> Iterator[str]:
    """Yields lines for the terminal: the first few of `across`, and counts."""
    found = list(across(duplicates).values())
    for places in found[:_SHOWN]:
        yield f"warning: the same image: {named([_name(place, root) for place in places])}"
    in_splits = sum(len({place.split for place in places}) > 1 for places in found)
    in_classes = sum(len({place.class_name for place in places}) > 1 for places in found)
    if in_splits:
        yield (
            f"warning: {in_splits} image(s) are in both splits, so evaluation measures images that "
            f"were trained on; remove them from one"
        )
    if in_classes:
        yield (
            f"warning: {in_classes} image(s) are in several classes, so some labels are wrong; "
            f"remove them from all but one"
        )
    if copies := sum(len(places) - _spread(places) for places in duplicates.values()):
        yield f"{copies} file(s) are copies of another one in their class and split"


def table(duplicates: Duplicates) -> str:
    """Returns a line for each file of `across`: digest, split and path, with tabs between them."""
    return "".join(
        f"{digest}\t{place.split}\t{place.path}\n"
        for digest, places in across(duplicates).items()
        for place in places
    )


def _name(place: Place, root: Path) -> str:
    relative = os.path.relpath(place.path, root)
    return relative if relative.startswith(f"{place.split}/") else f"{relative} ({place.split})"


def _spread(places: Sequence[Place]) -> int:
    return len({(place.split, place.class_name) for place in places})
