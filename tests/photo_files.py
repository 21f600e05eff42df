"""Small real photographs in folders of classes, for tests of the input."""

from pathlib import Path

import numpy as np
from PIL import Image

from trainer.config import Config, DataConfig, ModelConfig

CLASSES = ("china", "flower")
KINDS = ("jpg", "png", "JPEG", "gif", "bmp", "webp")


def write_photos(root: Path, photos: list[np.ndarray], **counts: int) -> Path:
    """Writes `counts` pieces of the two photos, as `root/<split>/<class>/<number>.<kind>`."""
    random = np.random.default_rng(0)
    for split, count in counts.items():
        for name, photo in zip(CLASSES, photos, strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                top, left = random.integers(0, 300), random.integers(0, 500)
                height, width = random.integers(60, 120, 2)
                piece = Image.fromarray(photo[top : top + height, left : left + width])
                piece.save(folder / f"{number:03d}.{KINDS[number % len(KINDS)]}")
    return root


def photo_config(**data) -> Config:
    """Returns the config of a run on such folders."""
    defaults = {
        "name": "folder",
        "eval_split": "val",
        "image_size": 24,
        "crop": "random_resized",
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "global_batch_size": 8,
        "eval_batch_size": 8,
    }
    return Config(
        model=ModelConfig(name="tests.small_models.linear", num_classes=2),
        data=DataConfig(**(defaults | data)),
    )
