"""The code of a run as one file: the same bytes for the same code, wherever and whenever made."""

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

from launch.errors import LaunchError

MOST_BYTES = 64 * 2**20  # packed; code is small, and what is larger is no code
_LEFT_OUT = {"runs", "__pycache__"}  # and all that starts with "."


def pack(folder: str) -> bytes:
    """A tar.gz: of a git checkout what git tracks, as it lies there now; of another folder all
    files but hidden ones, caches and runs/.

    Raises:
        LaunchError: where it is too large, or there is nothing to pack.
    """
    root = Path(folder)
    names = _tracked(root)
    if names is None:
        names = _all(root)
    buffer = io.BytesIO()
    size = 0
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(names):
            path = root / name
            if path.is_symlink():
                _add(tar, name, b"", link=path.readlink().as_posix())
            elif path.is_file():  # git also tracks what was deleted since, and other repositories
                size += path.stat().st_size
                if size > 4 * MOST_BYTES:  # not worth packing to find out
                    raise _too_large(folder, size)
                _add(tar, name, path.read_bytes(), executable=bool(path.stat().st_mode & 0o100))
    if not size:
        raise LaunchError(f"--folder={folder}: has no code to upload; name the one with trainer/")
    if buffer.tell() > MOST_BYTES:
        raise _too_large(folder, buffer.tell())
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _too_large(folder: str, size: int) -> LaunchError:
    return LaunchError(
        f"--folder={folder}: is {size >> 20} MiB, and code of at most {MOST_BYTES >> 20} MiB is "
        f"uploaded; leave data out of it (git rm --cached), or give --code=git+https://…"
    )


def _add(
    tar: tarfile.TarFile, name: str, data: bytes, link: str = "", executable: bool = False
) -> None:
    """Owner, times and the umask of this machine stay here."""
    entry = tarfile.TarInfo(name)
    entry.mode = 0o755 if executable or link else 0o644
    if link:
        entry.type, entry.linkname = tarfile.SYMTYPE, link
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _tracked(root: Path) -> list[str] | None:
    """None where it is no checkout, or there is no git."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached"]
    try:
        listed = subprocess.run(command, check=False, capture_output=True)
    except OSError:
        return None
    if listed.returncode:
        return None
    names = listed.stdout.decode(errors="surrogateescape").split("\0")
    # Nothing tracked: a folder within some other checkout that leaves it out.
    return [name for name in names if name] or None


def _all(root: Path) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if _is_code(name)]
        found += [
            (Path(folder) / name).relative_to(root).as_posix()
            for name in files
            if _is_code(name) and not name.endswith(".pyc")
        ]
    return found


def _is_code(name: str) -> bool:
    return not name.startswith(".") and name not in _LEFT_OUT
