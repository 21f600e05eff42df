"""Any TFDS data set of labelled images: small ones in memory, large ones read at random from disk.

See splits/tfds.py.
"""

import os
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from trainer.config import Config
from trainer.data.splits.record_index import INDEX, index_shards
from trainer.data.splits.split import Split
from trainer.data.splits.tfds import digits, name_of
from trainer.data.tfrecord import Records, RecordSource
from trainer.errors import UserError
from trainer.files import locked


def prepare(config: Config, data_dir: str) -> None:
    """Prepares the digits, which need no network, unless they are prepared."""
    if name_of(config) == "digits":
        _prepare_digits(os.path.expanduser(data_dir))


def make_source(config: Config, split: Split):
    """Makes the source of a split.

    Raises:
        UserError: if its files cannot be read at random.
    """
    del config
    builder = split.content
    if split.image_shape is not None:
        return InMemorySource(builder, split.name)
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        return ArrayRecordSource(builder, split.name)
    if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
        return _tfrecord_source(builder, split.name)
    raise UserError(
        f"data set {builder.info.full_name!r}: is prepared as {builder.info.file_format}, which "
        f"cannot be read at random; prepare it with: tfds build {builder.name} "
        f"--file_format=array_record"
    )


def channels(config: Config) -> int:
    """Returns the channels by TFDS's description of the data set, which needs no data.

    Returns `data.channels` if TFDS has no description of a data set that is not prepared.
    """
    if config.data.name == "digits":
        return 1
    try:
        builder = tfds.builder(name_of(config))
        return int(builder.info.features["image"].shape[-1])
    except Exception:  # TFDS has an error for each of many causes
        return config.data.channels


def _prepare_digits(data_dir: str) -> None:
    try:
        if digits(data_dir).is_prepared():
            return
        Path(data_dir).mkdir(parents=True, exist_ok=True)
        # Two processes that start at once must not both write it.
        with locked(Path(data_dir) / ".digits.lock"):
            builder = digits(data_dir)  # again: another process may have prepared it
            if not builder.is_prepared():
                tfds.disable_progress_bar()
                builder.download_and_prepare(file_format="array_record")
    except OSError as error:
        raise UserError(
            f"--data_dir={data_dir}: cannot be written ({error.strerror}), "
            f"but the digits are prepared there; name another folder"
        ) from None


def _class_names(builder: tfds.core.DatasetBuilder) -> tuple[str, ...]:
    return tuple(builder.info.features["label"].names)


def _tfrecord_source(builder: tfds.core.DatasetBuilder, split: str) -> RecordSource:
    instructions = builder.info.splits[split].file_instructions
    folder = Path(builder.data_dir)
    paths = [str(folder / Path(i.filename).name) for i in instructions]
    shards = index_shards(paths, folder / INDEX)
    for shard, instruction in zip(shards, instructions, strict=True):
        if len(shard.offsets) != instruction.examples_in_shard:
            raise UserError(
                f"{shard.path}: has {len(shard.offsets)} whole records, but TFDS wrote "
                f"{instruction.examples_in_shard}; prepare data set {builder.info.full_name!r} "
                f"again"
            )
    taken = [slice(i.skip, None if i.take < 0 else i.skip + i.take) for i in instructions]
    channels = int(builder.info.features["image"].shape[-1])
    return RecordSource(Records(shards, taken), _class_names(builder), channels, "image", "label")


class InMemorySource:
    """A source of images of one size, decoded once and kept in memory."""

    in_graph = True

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self.class_names = _class_names(builder)
        if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
            examples = list(builder.as_data_source(split=split))
        else:
            examples = list(tfds.as_numpy(builder.as_dataset(split=split)))
        self._images = tf.constant(np.stack([example["image"] for example in examples]))
        self._labels = tf.constant([int(example["label"]) for example in examples], tf.int32)
        self._name = f"{builder.info.full_name} {split}"
        self.image_shape: tuple[int, int, int] | None = tuple(self._images.shape[1:])
        self.channels = int(self._images.shape[-1])

    def __len__(self) -> int:
        return int(self._labels.shape[0])

    def describe(self, index: int) -> str:
        return f"{self._name}, example {index}"

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(self._images, indices), tf.gather(self._labels, indices)


class ArrayRecordSource:
    """A source on disk, in array_record format; images are fetched encoded."""

    in_graph = False  # array_record is read from Python
    image_shape: tuple[int, int, int] | None = None

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self.class_names = _class_names(builder)
        self.channels = int(builder.info.features["image"].shape[-1])
        self._name = f"{builder.info.full_name} {split}"
        self._data = builder.as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )

    def describe(self, index: int) -> str:
        return f"{self._name}, example {index}"

    def __len__(self) -> int:
        return len(self._data)

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            examples = self._data.__getitems__(rows.tolist())
            images = np.array([example["image"] for example in examples], dtype=object)
            return images, np.array([example["label"] for example in examples], np.int32)

        images, labels = tf.numpy_function(read, [indices], (tf.string, tf.int32), stateful=False)
        return tf.ensure_shape(images, indices.shape), tf.ensure_shape(labels, indices.shape)
