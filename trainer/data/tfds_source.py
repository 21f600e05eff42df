"""Any TFDS data set of labelled images: small ones in memory, large ones read at random from disk.

Nothing is downloaded here: a download can take days and a terabyte, so it is a separate command,
which the error names.
"""

import os
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from trainer.config import Config
from trainer.data.record_index import INDEX, index_shards
from trainer.data.tfrecord import Records, RecordSource
from trainer.errors import UserError
from trainer.files import locked

# Data sets of images of one size up to this are decoded once and kept in memory (CIFAR-10: 150 MB).
_IN_MEMORY_BYTES = 2**30


def open_source(config: Config, split: str, data_dir: str):
    """Opens a prepared TFDS data set. Digits are prepared first, which needs no network.

    Raises:
        UserError: for an unknown name or split, or a data set that is not prepared.
    """
    name = _tfds_name(config)
    data_dir = os.path.expanduser(data_dir)
    builder = _digits(data_dir) if name == "digits" else _prepared(name, data_dir)
    try:
        num_examples = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise UserError(
            f"data split {split!r}: data set {name!r} has no such split "
            f"({' '.join(str(error).split())}); it has {', '.join(builder.info.splits)}"
        ) from None
    if num_examples <= 0:  # TFDS counts test[50%:10%] below 0
        raise UserError(f"data split {split!r}: has no examples of data set {name!r}")
    features = dict(builder.info.features.items())
    if not (
        isinstance(features.get("image"), tfds.features.Image)
        and isinstance(features.get("label"), tfds.features.ClassLabel)
    ):
        raise UserError(f"data set {name!r}: has no features 'image' and 'label', needed to train")
    shape, dtype = features["image"].shape, features["image"].np_dtype
    if shape[-1] not in (1, 3) or dtype != np.uint8:
        raise UserError(
            f"data set {name!r}: its images are {np.dtype(dtype).name} with {shape[-1]} channels; "
            f"they must be uint8 with 1 or 3"
        )
    if None not in shape and num_examples * int(np.prod(shape)) <= _IN_MEMORY_BYTES:
        return InMemorySource(builder, split)
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        return ArrayRecordSource(builder, split)
    if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
        return _tfrecord_source(builder, split)
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
        builder = tfds.builder(_tfds_name(config))
        return int(builder.info.features["image"].shape[-1])
    except Exception:  # TFDS has an error for each of many causes
        return config.data.channels


def _tfds_name(config: Config) -> str:
    return str(config.data.path if config.data.name == "tfds" else config.data.name)


def _digits(data_dir: str) -> tfds.core.DatasetBuilder:
    from trainer.data.digits import Digits

    try:
        builder = Digits(data_dir=data_dir)
        if builder.is_prepared():
            return builder
        Path(data_dir).mkdir(parents=True, exist_ok=True)
        # Two processes that start at once must not both write it.
        with locked(Path(data_dir) / ".digits.lock"):
            builder = Digits(data_dir=data_dir)  # again: another process may have prepared it
            if not builder.is_prepared():
                tfds.disable_progress_bar()
                builder.download_and_prepare(file_format="array_record")
    except OSError as error:
        raise UserError(
            f"--data_dir={data_dir}: cannot be written ({error.strerror}), "
            f"but the digits are prepared there; name another folder"
        ) from None
    return builder


def _prepared(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    # A wrong name, version or configuration, or no connection: TFDS has an error for each.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"data set {name!r}: TFDS does not know it ({type(error).__name__}: {reason}), or "
            f"cannot read {data_dir}"
        ) from None
    if not builder.is_prepared():
        raise UserError(
            f"data set {name!r}: not prepared in {data_dir}; prepare it once, with a network "
            f"connection: tfds build {name} --file_format=array_record --data_dir={data_dir}"
        )
    return builder


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
