"""An index of where each record of TFRecord files begins, so that any one can be read.

A record is 8 bytes of length, little-endian, 4 of that length's checksum, the data, and 4 of the
data's checksum. The index is made once, by seeking from header to header, and kept next to the
data.
"""

import concurrent.futures
import os
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.errors import UserError
from trainer.files import replacing

INDEX = ".records.index.npz"  # its name, in the folder of the shards
_HEADER, _FOOTER = 12, 4  # bytes
_SCANS_AT_ONCE = 32  # they mostly wait for a disk or a network
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x78\x01": "zlib", b"\x78\x9c": "zlib", b"\x78\xda": "zlib"}


class Shard(NamedTuple):
    """A TFRecord file and where its records begin."""

    path: str
    offsets: np.ndarray  # int64, bytes, one for each whole record
    cut: bool  # whether it ends in the middle of a record
    size: int  # bytes
    modified: int  # ns since 1970


def index_shards(paths: Sequence[str], kept_at: Path) -> list[Shard]:
    """Returns the index of these files, from the file `kept_at` as far as that is up to date.

    A file whose size or time has changed is indexed again, which is logged. The entries
    of other files in `kept_at` stay.

    Raises:
        UserError: for a file that is missing, cannot be read, or is compressed.
    """
    kept = _load(kept_at)
    missing = []
    for path in paths:
        try:
            status = Path(path).stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        shard = kept.get(Path(path).name)
        if shard and (shard.size, shard.modified) == (status.st_size, status.st_mtime_ns):
            continue
        if shard:
            print(f"{path}: has changed since it was indexed; indexing it again", flush=True)
        missing.append(path)
    if missing:
        print(f"indexing {len(missing)} TFRecord file(s) of {kept_at.parent}, once", flush=True)
        with concurrent.futures.ThreadPoolExecutor(_SCANS_AT_ONCE) as pool:
            for path, shard in zip(missing, pool.map(_scan, missing), strict=True):
                kept[Path(path).name] = shard
        _save(list(kept.values()), kept_at)
    return [kept[Path(path).name]._replace(path=path) for path in paths]


def _save(shards: Sequence[Shard], kept_at: Path) -> None:
    """Writes an index. If that fails, prints a line: the next process makes the index again."""
    arrays = {
        "names": np.array([Path(shard.path).name for shard in shards]),
        "counts": np.array([len(shard.offsets) for shard in shards], np.int64),
        "cut": np.array([shard.cut for shard in shards]),
        "sizes": np.array([shard.size for shard in shards], np.int64),
        "modified": np.array([shard.modified for shard in shards], np.int64),
        "offsets": np.concatenate([shard.offsets for shard in shards]).astype(np.int64),
    }
    # Several workers may write it at once, on several machines.
    try:
        with replacing(kept_at, unique=True) as new, new.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        print(f"{kept_at}: cannot be written ({error.strerror}); continuing without", flush=True)


def _load(kept_at: Path) -> dict[str, Shard]:
    """Returns the kept index by file names; empty if there is none, or a broken one."""
    try:
        with np.load(kept_at) as arrays:
            ends = np.cumsum(arrays["counts"])
            offsets = np.split(arrays["offsets"], ends[:-1])
            columns = [arrays[name] for name in ("cut", "sizes", "modified")]
            return {
                str(name): Shard(str(name), own, bool(cut), int(size), int(modified))
                for name, own, cut, size, modified in zip(
                    arrays["names"], offsets, *columns, strict=True
                )
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}


def _scan(path: str) -> Shard:
    try:
        with Path(path).open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            offsets, cut = _record_offsets(path, file, status.st_size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return Shard(path, offsets, cut, status.st_size, status.st_mtime_ns)


def _record_offsets(path: str, file, size: int) -> tuple[np.ndarray, bool]:
    offsets = []
    position = 0
    while position < size:
        file.seek(position)
        header = file.read(_HEADER)
        end = position + _HEADER + _FOOTER
        if len(header) == _HEADER:
            end += struct.unpack("<Q", header[:8])[0]
        if len(header) < _HEADER or end > size:
            if not offsets and header[:2] in _COMPRESSED:
                raise UserError(
                    f"{path}: is compressed ({_COMPRESSED[header[:2]]}), so records cannot be read "
                    f"at random; write them without compression"
                )
            break
        offsets.append(position)
        position = end
    return np.array(offsets, np.int64), position != size
