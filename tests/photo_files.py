"""Small real photographs in folders of classes, for tests of the input."""

import struct
import zlib
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


def odd_jpegs(jpeg: bytes) -> dict[str, tuple[bytes, str]]:
    """Returns versions of a JPEG that decode all the same, each with libjpeg's warning."""
    jfif, scan = jpeg.index(b"JFIF\0") + 5, jpeg.index(b"\xff\xda")
    parameters = scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big") - 3
    middle = (scan + len(jpeg)) // 2
    return {
        "extraneous": (
            jpeg[:scan] + bytes(95) + jpeg[scan:],
            "Corrupt JPEG data: 95 extraneous bytes before marker 0xda",
        ),
        "revision": (
            jpeg[:jfif] + b"\0\0" + jpeg[jfif + 2 :],
            "Warning: unknown JFIF revision number 0.00",
        ),
        "parameters": (
            jpeg[: parameters + 1] + b"\x3e" + jpeg[parameters + 2 :],
            "Invalid SOS parameters for sequential JPEG",
        ),
        "marker": (
            jpeg[:middle] + b"\xff\xd3" + jpeg[middle:],
            "Corrupt JPEG data: premature end of data segment",
        ),
    }


def odd_png(png: bytes) -> tuple[bytes, str]:
    """Returns a PNG with a chunk that is too short, and libpng's warning."""
    data = b"x\0\0" + zlib.compress(b"not a profile")
    kind = b"iCCP"
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    after_header = 8 + 25
    return png[:after_header] + chunk + png[after_header:], "PNG warning: iCCP: too short"


def bad_jpegs(jpeg: bytes) -> dict[str, bytes]:
    """Returns versions of a JPEG that do not decode, each for another reason."""
    quantization, frame, huffman, scan = (
        jpeg.index(b"\xff" + marker) for marker in (b"\xdb", b"\xc0", b"\xc4", b"\xda")
    )
    replaced = {
        "quantization table": (quantization + 4, b"\x0f"),
        "lossless": (frame + 1, b"\xc3"),
        "progressive": (frame + 1, b"\xc2"),
        "marker length": (frame + 3, b"\x12"),
        "precision": (frame + 4, b"\x0b"),
        "no height": (frame + 5, b"\0\0"),
        "sampling": (frame + 11, b"\x55"),
        "no quantization table": (frame + 12, b"\x03"),
        "Huffman index": (huffman + 4, b"\x07"),
        "Huffman table": (huffman + 5, b"\xff\xff\xff"),
        "component": (scan + 5, b"\x77"),
        "no Huffman table": (scan + 6, b"\x33"),
    }
    edited = {
        name: jpeg[:place] + new + jpeg[place + len(new) :]
        for name, (place, new) in replaced.items()
    }
    return edited | {
        "cut": jpeg[: len(jpeg) // 2],
        "no end": jpeg[:-2],
        "nothing": jpeg[:3],
        "no image": jpeg[:2] + jpeg[-2:],
        "no frame": jpeg[:2] + jpeg[scan:],
        "two starts": jpeg[:2] + jpeg,
        "unknown marker": jpeg[:2] + b"\xff\x02" + jpeg[2:],
    }
