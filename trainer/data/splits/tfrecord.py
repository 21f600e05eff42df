"""Sharded TFRecord files of `tf.train.Example`s, by default with ImageNet's field names.

They are named `<split>-00000-of-00128` and so on, or `<split>.tfrecord`, in `data.path`: a path
below `--data_dir`, or an absolute one. Class names come from `manifest.json`, which
`trainer.prepare` writes; without it they are numbers.
"""

import concurrent.futures
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.config import Config
from trainer.data.splits.image_files import named
from trainer.data.splits.record_index import INDEX, Shard, index_shards
from trainer.data.splits.split import Split, fingerprint, local_folder, numbered_classes
from trainer.errors import UserError

MANIFEST = "manifest.json"
_SHARD = re.compile(r"([^.].*?)(?:\.tfrecord)?-\d+-of-\d+(?:\.tfrecord)?|([^.].*)\.tfrecord")
_SAMPLE_BYTES = 4096
_READS_AT_ONCE = 32  # they mostly wait for a disk or a network


class Manifest(NamedTuple):
    """What `trainer.prepare` wrote of a split; empty without a manifest."""

    class_names: tuple[str, ...]
    class_counts: tuple[int, ...] | None
    shard_bytes: tuple[int, ...]


def find(config: Config, split: str, data_dir: str) -> Split:
    """Finds the shards of a split, and where their records begin.

    Raises:
        UserError: if a shard is missing, compressed or cut. If bad examples are skipped, a missing
            shard and the end of a cut one are left out instead.
    """
    folder = local_folder(config, data_dir)
    skip = config.data.on_bad_example == "skip"
    paths = find_shards(folder, split, skip)
    shards = index_shards(paths, folder / INDEX)
    manifest = _manifest(folder, split)
    for number, shard in enumerate(shards):
        if shard.cut:
            _bad(f"{shard.path}: ends in the middle of record {len(shard.offsets)}", skip)
        elif not len(shard.offsets):
            _bad(f"{shard.path}: has no records", skip)
        elif len(manifest.shard_bytes) == len(shards):
            written = manifest.shard_bytes[number]
            if shard.size != written:
                _bad(
                    f"{shard.path}: has {shard.size:,} bytes, but {MANIFEST} says {written:,}",
                    skip,
                )
    num_examples = sum(len(shard.offsets) for shard in shards)
    if not num_examples:
        raise UserError(f"{folder}: split {split!r} has no records")
    counts = manifest.class_counts
    return Split(
        name=split,
        place=str(folder),
        fingerprint=fingerprint(_identity(shards)),
        num_examples=num_examples,
        class_names=manifest.class_names
        or numbered_classes(config, f"{folder} has no {MANIFEST} with class names"),
        class_counts=counts if counts and sum(counts) == num_examples else None,
        channels=config.data.channels,
        image_shape=None,
        content=tuple(shards),
    )


def _identity(shards: Sequence[Shard]) -> Iterator[bytes | str]:
    """Yields each shard's name and size, and bytes of its start, middle and end.

    Without the size and a sample, data that were prepared again under the same names would pass.
    """

    def sample(shard: Shard) -> bytes:
        try:
            with Path(shard.path).open("rb") as file:
                parts = []
                for place in (0, shard.size // 2, max(0, shard.size - _SAMPLE_BYTES)):
                    file.seek(place)
                    parts.append(file.read(_SAMPLE_BYTES))
                return b"".join(parts)
        except OSError as error:
            raise UserError(f"{shard.path}: cannot be read ({error.strerror})") from None

    with concurrent.futures.ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        for shard, sampled in zip(shards, pool.map(sample, shards), strict=True):
            yield Path(shard.path).name
            yield str(shard.size)
            yield sampled


def find_shards(folder: Path, split: str, skip: bool) -> list[str]:
    """Returns the paths of a split's files, in order."""
    pattern = re.compile(rf"{re.escape(split)}(?:\.tfrecord)?-(\d+)-of-(\d+)(?:\.tfrecord)?")
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from None
    found = {name: match for name in names if (match := pattern.fullmatch(name))}
    if not found:
        if f"{split}.tfrecord" in names:
            return [str(folder / f"{split}.tfrecord")]
        others = sorted({match[1] or match[2] for n in names if (match := _SHARD.fullmatch(n))})
        files = [name for name in names if not name.startswith(".")]
        raise UserError(
            f"{folder}: has no files {split}-00000-of-NNNNN or {split}.tfrecord; it has "
            + (f"the splits {named(others)}" if others else named(files) or "none")
        )
    totals = {int(match[2]) for match in found.values()}
    if len(totals) > 1:
        raise UserError(
            f"{folder}: has several sets of shards of {split!r}, of {sorted(totals)} files; keep "
            f"one of them"
        )
    missing = sorted(set(range(*totals)) - {int(match[1]) for match in found.values()})
    if missing:
        shown = ", ".join(f"{split}-{number:05d}" for number in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        verb = "is" if len(missing) == 1 else "are"
        _bad(f"{folder}: {shown}{more} {verb} missing, of {min(totals)} shards", skip)
    return [str(folder / name) for name in found]


def _bad(problem: str, skip: bool) -> None:
    if not skip:
        raise UserError(
            f"{problem}; restore it, or leave it out with --set data.on_bad_example=skip"
        )
    print(f"left out: {problem}", flush=True)


def _manifest(folder: Path, split: str) -> Manifest:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found = manifest.get("splits", {}).get(split, {})
        sizes = tuple(int(shard["bytes"]) for shard in found.get("shards", []))
        if not isinstance(manifest["class_names"], list):
            raise TypeError("class_names is not a list")
        names = tuple(map(str, manifest["class_names"]))
        counts = found.get("classes", {})
        has_counts = set(counts) == set(names)
        return Manifest(names, tuple(counts[n] for n in names) if has_counts else None, sizes)
    except FileNotFoundError:
        return Manifest((), None, ())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / MANIFEST}: cannot be read ({type(error).__name__}: {error}); restore it, "
            f"or remove it for classes without names"
        ) from None
