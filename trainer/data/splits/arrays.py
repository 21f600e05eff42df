"""Images in a numpy `.npz` file, named as in Keras' data sets: `x_train`, `y_train`, `x_test`,
`y_test`, one pair for each split. They are kept in memory.
"""

import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from trainer.config import Config
from trainer.data.splits.split import Split, fingerprint, local_folder, numbered_classes
from trainer.errors import UserError

# The errors that numpy raises for other files and for damaged ones.
_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


# Of longer arrays, the fingerprint takes this much: half of it at the start, half at the end.
_HASHED_BYTES = 2**30


def find(config: Config, split: str, data_dir: str) -> Split:
    """Reads the arrays of a split from `data.path`: a path below `data_dir`, or an absolute one.

    Raises:
        UserError: if the file or an array in it is missing, or has another type or shape.
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
    images, labels = _checked(images, labels, split, str(path))
    class_names = _classes(config, labels, f"{path}: y_{split}")
    inside = labels[(labels >= 0) & (labels < len(class_names))]
    return Split(
        name=split,
        place=str(path),
        fingerprint=fingerprint(_identity(images, labels)),
        num_examples=len(images),
        class_names=class_names,
        class_counts=tuple(np.bincount(inside, minlength=len(class_names)).tolist()),
        channels=images.shape[-1],
        image_shape=images.shape[1:],
        content=(images, labels),
    )


def _checked(
    images: np.ndarray, labels: np.ndarray, split: str, path: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images `[n, height, width, channels]` and labels `[n]`."""
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
            f"{path}: y_{split} must be integers [{len(images)}], one for each image, not "
            f"{labels.dtype} {list(labels.shape)}"
        )
    return images, labels


def _identity(images: np.ndarray, labels: np.ndarray) -> Iterator[memoryview | str]:
    for array in (images, labels):
        yield f"{array.dtype} {array.shape}"
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        half = _HASHED_BYTES // 2
        parts = (content,) if len(content) <= 2 * half else (content[:half], content[-half:])
        yield from (part.data for part in parts)


def _classes(config: Config, labels: np.ndarray, where: str) -> tuple[str, ...]:
    """Returns numbers as class names: `model.num_classes` of them or, if that is none, the labels.

    The labels must then be 0, 1, 2, … without a gap: other ones are more likely a mistake.
    """
    if config.model.num_classes is None:
        found = np.unique(labels)
        if np.array_equal(found, np.arange(len(found))):
            return tuple(map(str, found))
    return numbered_classes(config, f"the labels of {where} are not 0, 1, 2, … without a gap")
