"""Images in a numpy `.npz` file, as Keras' own data sets have them: `x_train`, `y_train`, `x_test`,
`y_test`, and so on by split. They are kept in memory.
"""

import zipfile
import zlib

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.data.source import local_folder, numbered_classes
from trainer.errors import UserError

# What numpy raises for what is no such file, or a damaged one.
_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


def open_source(config: Config, split: str, data_dir: str) -> "ArraySource":
    """Opens `data.path`, below `data_dir` or from the root.

    Raises:
        UserError: where the file, or an array in it, is missing or of another form.
    """
    path = local_folder(config, data_dir)
    try:
        with np.load(path) as arrays:  # refuses pickled objects
            missing = {f"x_{split}", f"y_{split}"} - set(arrays)
            if missing:
                raise UserError(
                    f"{path}: has no array {', '.join(sorted(missing))}; it has "
                    f"{', '.join(sorted(arrays))}"
                )
            images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    except _ERRORS as error:
        raise UserError(
            f"data.path={config.data.path}: {path} cannot be read as .npz "
            f"({type(error).__name__}: {error}); write it with numpy.savez"
        ) from None
    return ArraySource(str(path), images, labels, split, config)


class ArraySource:
    """uint8 images `[n, height, width]` or `[n, height, width, channels]`, whole-number labels
    `[n]` or `[n, 1]`."""

    in_graph = True

    def __init__(
        self, path: str, images: np.ndarray, labels: np.ndarray, split: str, config: Config
    ):
        if images.ndim == 3:
            images = images[..., None]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise UserError(
                f"{path}: x_{split} must be uint8 [n, height, width] or [n, height, width, 1 or "
                f"3], not {images.dtype} {list(images.shape)}"
            )
        labels = labels.reshape(-1) if labels.shape[1:] == (1,) else labels
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"{path}: y_{split} must be whole numbers [{len(images)}], one for each image, not "
                f"{labels.dtype} {list(labels.shape)}"
            )
        self._path, self._split = path, split
        self.image_shape: tuple[int, int, int] | None = images.shape[1:]
        self.channels = images.shape[-1]
        self.class_names = _classes(config, labels, f"{path}: y_{split}")
        with tf.device("CPU"):
            self._images = tf.constant(images)
            self._labels = tf.constant(np.clip(labels, -1, 2**31 - 1).astype(np.int32))

    def __len__(self) -> int:
        return int(self._labels.shape[0])

    def describe(self, index: int) -> str:
        return f"{self._path}, x_{self._split}[{index}]"

    def fetch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(self._images, indices), tf.gather(self._labels, indices)


def _classes(config: Config, labels: np.ndarray, where: str) -> tuple[str, ...]:
    """Returns numbers as class names: as many as the config has, or, if that is none, the labels.

    A label that is missing or negative is more likely a mistake than a class.
    """
    if config.model.num_classes is None:
        found = np.unique(labels)
        if np.array_equal(found, np.arange(len(found))):
            return tuple(map(str, found))
    return numbered_classes(config, f"the labels of {where} are not 0, 1, 2, … without a gap")
