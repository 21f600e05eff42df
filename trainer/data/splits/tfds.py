"""Any TFDS data set of labelled images that is prepared. TFDS itself needs no TensorFlow for this.

Nothing is downloaded here: a download can take days and a terabyte, so it is a separate command,
which the error names.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from trainer.config import Config
from trainer.data.splits.split import Split, fingerprint
from trainer.errors import UserError

# Data sets of images of one size up to this are decoded once and kept in memory (CIFAR-10: 150 MB).
_IN_MEMORY_BYTES = 2**30


def find(config: Config, split: str, data_dir: str) -> Split | None:
    """Finds a split of a prepared data set; None if it is the digits, and not prepared yet.

    Raises:
        UserError: for an unknown name or split, or another data set that is not prepared.
    """
    name = name_of(config)
    data_dir = os.path.expanduser(data_dir)
    builder = digits(data_dir) if name == "digits" else _prepared(name, data_dir)
    if not builder.is_prepared():
        return None
    try:
        num_examples = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise UserError(
            f"data split {split!r}: data set {name!r} has no such split "
            f"({' '.join(str(error).split())}); it has {', '.join(builder.info.splits)}"
        ) from None
    if num_examples <= 0:  # TFDS counts test[50%:10%] below 0
        raise UserError(f"data split {split!r}: has no examples of data set {name!r}")
    described: Any = builder.info.features
    features = dict(described.items())
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
    in_memory = None not in shape and num_examples * int(np.prod(shape)) <= _IN_MEMORY_BYTES
    return Split(
        name=split,
        place=str(builder.data_dir),
        fingerprint=fingerprint(_identity(builder, split)),
        num_examples=num_examples,
        class_names=tuple(features["label"].names),
        class_counts=None,
        channels=int(shape[-1]),
        image_shape=tuple(shape) if in_memory else None,
        content=builder,
    )


def _identity(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[str]:
    """Yields the data set's name and version, its splits' sizes and its classes.

    TFDS's preparation is deterministic, so these stand for the examples and their order, in any
    file format.
    """
    yield builder.info.full_name
    yield split
    for name, info in sorted(builder.info.splits.items()):
        yield f"{name} {info.num_examples} {info.num_bytes}"
    features: Any = builder.info.features
    yield from features["label"].names


def name_of(config: Config) -> str:
    """Returns the name by which TFDS knows the config's data set."""
    return str(config.data.path if config.data.name == "tfds" else config.data.name)


def digits(data_dir: str) -> tfds.core.DatasetBuilder:
    """Returns the builder of the digits, prepared or not."""
    from trainer.data.digits import Digits

    return Digits(data_dir=data_dir)


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
