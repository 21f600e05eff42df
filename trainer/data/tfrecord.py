"""Sharded TFRecord files of `tf.train.Example`s, by default with ImageNet's field names.

They are named `<split>-00000-of-00128` and so on, or `<split>.tfrecord`, in `data.path`: a path
below `--data_dir`, or an absolute one. Class names come from `manifest.json`, which
`trainer.prepare` writes; without it they are numbers.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data.record_index import INDEX, Shard, index_shards
from trainer.data.source import local_folder, numbered_classes, read_each
from trainer.errors import UserError

MANIFEST = "manifest.json"
_BUFFER_BYTES = 160 * 1024


def open_source(config: Config, split: str, data_dir: str) -> "RecordSource":
    """Opens a split.

    Raises:
        UserError: if a shard is missing, compressed or cut. If bad examples are skipped, a missing
            shard and the end of a cut one are left out instead.
    """
    folder = local_folder(config, data_dir)
    skip = config.data.on_bad_example == "skip"
    paths = find_shards(folder, split, skip)
    shards = index_shards(paths, folder / INDEX)
    class_names, written = _manifest(folder, split)
    for number, shard in enumerate(shards):
        if shard.cut:
            _bad(f"{shard.path}: ends in the middle of record {len(shard.offsets)}", skip)
        elif not len(shard.offsets):
            _bad(f"{shard.path}: has no records", skip)
        elif len(written) == len(shards) and shard.size != written[number]:
            _bad(
                f"{shard.path}: has {shard.size:,} bytes, but {MANIFEST} says {written[number]:,}",
                skip,
            )
    if not sum(len(shard.offsets) for shard in shards):
        raise UserError(f"{folder}: split {split!r} has no records")
    return RecordSource(
        Records(shards),
        class_names or numbered_classes(config, f"{folder} has no {MANIFEST} with class names"),
        config.data.channels,
        config.data.image_field,
        config.data.label_field,
        config.data.first_label,
    )


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
        raise UserError(
            f"{folder}: has no files {split}-00000-of-NNNNN or {split}.tfrecord; "
            f"it has {', '.join([n for n in names if n[0] != '.'][:5]) or 'none'}"
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


def _manifest(folder: Path, split: str) -> tuple[tuple[str, ...], list[int]]:
    """Returns what `trainer.prepare` wrote: the class names, and the bytes of each shard of the
    split. Empty without a manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        shards = manifest.get("splits", {}).get(split, {}).get("shards", [])
        sizes = [int(shard["bytes"]) for shard in shards]
        if not isinstance(manifest["class_names"], list):
            raise TypeError("class_names is not a list")
        return tuple(map(str, manifest["class_names"])), sizes
    except FileNotFoundError:
        return (), []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / MANIFEST}: cannot be read ({type(error).__name__}: {error}); restore it, "
            f"or remove it for classes without names"
        ) from None


class Records:
    """Random access to the bytes of records, in a TensorFlow graph.

    Args:
        taken: the slice of each shard's records that is used; None for all.
    """

    def __init__(self, shards: Sequence[Shard], taken: Sequence[slice] | None = None):
        taken = taken or [slice(None)] * len(shards)
        offsets = [shard.offsets[part] for shard, part in zip(shards, taken, strict=True)]
        self._names = [shard.path for shard in shards]
        self._shards = np.repeat(np.arange(len(shards), dtype=np.int32), [len(o) for o in offsets])
        self._offsets = np.concatenate(offsets).astype(np.int64)
        with tf.device("CPU"):
            self._tensors = (
                tf.constant(self._names),
                tf.constant(self._shards),
                tf.constant(self._offsets),
            )

    def __len__(self) -> int:
        return len(self._offsets)

    def describe(self, index: int) -> str:
        return f"{self._names[self._shards[index]]}, the record at byte {self._offsets[index]}"

    def fetch(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns the serialized records at int64 `[n]`: string `[n]`."""

        names, shards, offsets = self._tensors

        def read(index: tf.Tensor) -> tf.Tensor:
            dataset = tf.raw_ops.TFRecordDatasetV2(
                filenames=[tf.gather(names, tf.gather(shards, index))],
                compression_type="",
                buffer_size=_BUFFER_BYTES,
                byte_offsets=[tf.gather(offsets, index)],
            )
            return tf.raw_ops.DatasetToSingleElement(
                dataset=tf.raw_ops.TakeDataset(
                    input_dataset=dataset, count=1, output_types=[tf.string], output_shapes=[[]]
                ),
                output_types=[tf.string],
                output_shapes=[[]],
            )[0]

        return read_each(read, indices)


class RecordSource:
    """A source of records with an encoded image and a label."""

    in_graph = True
    image_shape: tuple[int, int, int] | None = None

    def __init__(
        self,
        records: Records,
        class_names: tuple[str, ...],
        channels: int,
        image_field: str,
        label_field: str,
        first_label: int = 0,
    ):
        self._records = records
        self.class_names = class_names
        self.channels = channels
        self._image_field, self._label_field = image_field, label_field
        self._first_label = first_label

    def __len__(self) -> int:
        return len(self._records)

    def describe(self, index: int) -> str:
        return self._records.describe(index)

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features = {
            self._image_field: tf.io.FixedLenFeature([], tf.string),
            self._label_field: tf.io.FixedLenFeature([], tf.int64),
        }
        values: Any = tf.io.parse_example(self._records.fetch(indices), features)
        labels = values[self._label_field] - self._first_label
        # Labels beyond int32 stay outside the classes.
        labels = tf.clip_by_value(labels, -1, tf.int32.max)
        return values[self._image_field], tf.cast(labels, tf.int32)
