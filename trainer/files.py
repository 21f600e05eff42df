"""Files that are whole or not there, and locks that die with their process.

Imports the standard library alone. A reader, or the next process after a kill or a power cut, sees
the old file or the new one.
"""

import contextlib
import fcntl
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_MODE = 0o666  # less the umask


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = _MODE, unique: bool = False) -> Iterator[Path]:
    """Yields the path of an empty file to write to, which replaces `path` when the block ends.

    If the block fails, the written file is removed and `path` stays as it was. The written file is
    flushed to the disk before it is renamed.

    Args:
        mode: the file's permissions, before the umask, even if a library writes it that chooses
            others.
        unique: write to a name that no other process has. For files that several processes may
            write at once; a kill then leaves a file behind that nobody overwrites.
    """
    middle = f".{uuid.uuid4().hex}" if unique else ""
    temporary = path.with_name(f".{path.name}{middle}.tmp")
    temporary.unlink(missing_ok=True)  # the mode counts only for a file that is created
    permissions = _create(temporary, mode)
    try:
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != permissions:
            temporary.chmod(permissions)
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def write_atomically(
    path: Path, text: str, *, errors: str = "strict", mode: int = _MODE, unique: bool = False
) -> None:
    """Writes a text file in UTF-8, whole or not at all.

    Args:
        errors: as of `open`: how to write what is not valid text, such as some file names.
        mode: the file's permissions, before the umask.
        unique: as of `replacing`, for files that several processes may write at once.

    Raises:
        OSError: if it cannot be written; the old file, if any, is as it was.
    """
    with replacing(path, mode=mode, unique=unique) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


@contextlib.contextmanager
def locked(
    path: Path, *, wait: bool = True, shared: bool = False, mode: int = _MODE
) -> Iterator[IO[str]]:
    """Holds a lock on the file `path`, which is created if needed, until the block ends.

    The kernel releases the lock when the process dies, also by SIGKILL.

    Args:
        wait: wait for another process that holds the lock; otherwise raise BlockingIOError, and
            leave the file's text as it is.
        shared: let others who want a shared lock hold one, too.

    Yields:
        The open file, for reading and writing from its start: its text can name the owner.

    Raises:
        BlockingIOError: without `wait`, if another process holds the lock.
        OSError: if the file cannot be opened, or its file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
        yield file


def _create(path: Path, mode: int) -> int:
    """Creates an empty file, and returns its mode, which is `mode` less the umask."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse it for folders
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)
