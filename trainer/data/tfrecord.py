"""Fetches records of TFRecord files at random, see splits/tfrecord.py."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data.source import read_each
from trainer.data.splits.record_index import Shard
from trainer.data.splits.split import Split

_BUFFER_BYTES = 160 * 1024


def make_source(config: Config, split: Split) -> "RecordSource":
    """Makes the source of a split."""
    data = config.data
    return RecordSource(
        Records(split.content),
        split.class_names,
        split.channels,
        data.image_field,
        data.label_field,
        data.first_label,
    )


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
