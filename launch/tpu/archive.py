"""The code of a run as one archive: the same bytes for the same code, on any machine, any day."""

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

from launch.errors import LaunchError

MOST_BYTES = 64 * 2**20  # packed; anything larger is not code
_LEFT_OUT = {"runs", "__pycache__"}  # and everything that starts with "."


def pack(folder: str) -> bytes:
    """Packs a folder into a tar.gz.

    From a git checkout, it takes the files that git tracks, as they are now; from any other folder,
    all files except hidden ones, caches and runs/.

    Raises:
        LaunchError: if it is too large, or there is nothing to pack.
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
            elif path.is_file():  # git also lists deleted files and submodules
                size += path.stat().st_size
                if size > 4 * MOST_BYTES:  # too large even before packing
                    raise _too_large(folder, size)
                _add(tar, name, path.read_bytes(), executable=bool(path.stat().st_mode & 0o100))
    if not size:
        raise LaunchError(
            f"--folder={folder}: has no code to upload; name the folder that contains trainer/"
        )
    if buffer.tell() > MOST_BYTES:
        raise _too_large(folder, buffer.tell())
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _too_large(folder: str, size: int) -> LaunchError:
    return LaunchError(
        f"--folder={folder}: {size >> 20} MiB of code, but at most {MOST_BYTES >> 20} MiB can be "
        f"uploaded; leave data out (git rm --cached), or use --code=git+https://…"
    )


def _add(
    tar: tarfile.TarFile, name: str, data: bytes, link: str = "", executable: bool = False
) -> None:
    """Adds a file, without this machine's owner, times and umask."""
    entry = tarfile.TarInfo(name)
    entry.mode = 0o755 if executable or link else 0o644
    if link:
        entry.type, entry.linkname = tarfile.SYMTYPE, link
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _tracked(root: Path) -> list[str] | None:
    """Returns the files that git tracks; None if this is not a checkout, or git is missing."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached"]
    try:
        listed = subprocess.run(command, check=False, capture_output=True)
    except OSError:
        return None
    if listed.returncode:
        return None
    names = listed.stdout.decode(errors="surrogateescape").split("\0")
    # Nothing tracked: a folder inside some other checkout, which ignores it.
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
