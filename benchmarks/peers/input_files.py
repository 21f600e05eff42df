"""The request to benchmarks/input.py's contenders, and the settings of its augmentation.

Standard library and NumPy only, because the peers' environments import it too.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers import protocol

CLASSES = ("china", "flower")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of random resized crops
RANDAUGMENT = (2, 9.0)  # layers, magnitude


class InputRequest(NamedTuple):
    """A request for batches of augmented images from `data`."""

    data: Path  # has train/CLASS/*.jpg, and the same as TFRecord in records/
    batch: int
    image_size: int  # height and width of the batch's images, pixels
    threads: int
    randaugment: bool
    variant: str


def read_request() -> InputRequest:
    """Reads the request from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--image_size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--randaugment", action="store_true")
    parser.add_argument("--variant", default="")
    return InputRequest(**vars(parser.parse_args()))


def serve(batches, *packages: str) -> None:
    """Answers `run N` by taking N batches; without a model, the loss is 0."""

    def run(steps: int) -> tuple[int, float]:
        for _ in range(steps):
            next(batches)
        return steps, 0.0

    protocol.serve(run, 0, protocol.versions(*packages))
