"""The files of a class folder: which are images, which are a system's own, and which are not read.

Images may lie in folders below the class folder, at any depth. Links to folders are followed,
except those that lead back to a folder above them.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# What the decoder reads. It goes by content, so only the format matters: .jfif and .jpe are JPEG.
READ = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp")
# What `trainer.prepare` converts, as far as the installed Pillow reads it.
CONVERTED = (
    *(".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".j2k"),
    *(".tga", ".ppm", ".pgm", ".pbm", ".pnm"),
)
# What file managers, archives, network storage and notebooks leave, in lower case. Hidden files
# and folders are not the user's either: a Mac puts ._001.jpg next to 001.jpg.
_SYSTEM_FOLDERS = {
    *("__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information"),
    *("lost+found", "__pycache__"),
}
_SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
_NAMED = 5  # names or endings in a message


class ClassFiles(NamedTuple):
    """The files of a class folder, in the file system's order."""

    names: list[str]  # paths below the class folder
    entries: list[os.DirEntry[str]]
    unread: Counter[str]  # files of other formats, by their ending in lower case


def is_users(name: str) -> bool:
    """Returns whether a folder is the user's: not hidden, and not a system's own."""
    return not name.startswith(".") and name.lower() not in _SYSTEM_FOLDERS


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether an entry is a folder or a link to one; a link to itself is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def find_images(folder: str, endings: Sequence[str] = READ) -> ClassFiles:
    """Lists the images of a class folder, and counts its other files.

    Args:
        endings: of the files that are images, in lower case.

    Raises:
        OSError: if it, or a folder below it, cannot be listed.
    """
    found = ClassFiles([], [], Counter())
    images = tuple(endings)
    for name, entry in _files(folder):
        if name.lower().endswith(images):
            found.names.append(name)
            found.entries.append(entry)
        elif entry.name.lower() not in _SYSTEM_FILES:
            found.unread[Path(entry.name).suffix.lower() or "without an ending"] += 1
    return found


def has_images(folder: str, endings: Sequence[str] = READ) -> bool:
    """Returns whether a class folder has an image; stops at the first.

    Raises:
        OSError: if it, or a folder below it, cannot be listed.
    """
    images = tuple(endings)
    return any(name.lower().endswith(images) for name, _ in _files(folder))


def sizes_of(entries: Sequence[os.DirEntry[str]]) -> list[int]:
    """Returns the sizes of files in bytes; 0 for those that cannot be read, which reading tells."""
    sizes = []
    for entry in entries:
        try:
            sizes.append(entry.stat().st_size)
        except OSError:
            sizes.append(0)
    return sizes


def named(names: Sequence[str]) -> str:
    """Returns the first names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def unread_line(unread: Counter[str], can_convert: Sequence[str]) -> str:
    """Returns how many files are not read, by ending: "12 files are not read: 7 .tif, 5 .txt".

    Args:
        can_convert: the endings for which to advise `trainer.prepare`.
    """
    total = unread.total()
    kinds = [f"{count} {ending}" for ending, count in unread.most_common()]
    advice = "; python -m trainer.prepare converts what Pillow reads"
    return f"{total} {'file is' if total == 1 else 'files are'} not read: {named(kinds)}" + (
        advice if any(ending in unread for ending in can_convert) else ""
    )


def _files(folder: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    yield from _files_below(folder, "", frozenset([_identity(Path(folder).parent)]))


def _files_below(
    folder: str, prefix: str, above: frozenset[tuple[int, int]]
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yields the files that are not hidden, with their paths below the class folder.

    Args:
        above: the identities of the folders above this one: a link to one of them has no end.
    """
    here = _identity(folder)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if not is_folder(entry):
                yield prefix + name, entry
            elif is_users(name):
                yield from _files_below(entry.path, f"{prefix}{name}/", above | {here})


def _identity(folder: str | Path) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino
