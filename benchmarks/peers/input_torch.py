"""PyTorch's DataLoader with Pillow: the same transforms, done as in torchvision and timm."""

from benchmarks.peers import protocol  # noqa: F401  # first: its clock starts  # isort: skip

import math
import random

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from PIL import Image, ImageEnhance, ImageOps
from torch.utils.data import DataLoader, Dataset  # pyright: ignore[reportMissingImports]

from benchmarks.peers import input_files

FILL = (128, 128, 128)


def random_resized_crop(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    for _ in range(10):
        area = random.uniform(*input_files.AREA) * width * height
        ratio = math.exp(random.uniform(*map(math.log, input_files.ASPECT)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= width and h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            box = (left, top, left + w, top + h)
            return image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    return image.resize((size, size), Image.Resampling.BILINEAR)


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=FILL
    )


def randaugment(image: Image.Image) -> Image.Image:
    layers, magnitude = input_files.RANDAUGMENT
    for _ in range(layers):
        x = random.choice((-1, 1)) * magnitude / 30
        image = random.choice(OPERATIONS)(image, x)
    return image


OPERATIONS = [
    lambda image, x: image,
    lambda image, x: ImageOps.autocontrast(image),
    lambda image, x: ImageOps.equalize(image),
    lambda image, x: image.rotate(30 * x, Image.Resampling.NEAREST, fillcolor=FILL),
    lambda image, x: ImageOps.solarize(image, round(256 * (1 - abs(x)))),
    lambda image, x: ImageEnhance.Color(image).enhance(1 + 0.9 * x),
    lambda image, x: ImageOps.posterize(image, 8 - round(4 * abs(x))),
    lambda image, x: ImageEnhance.Contrast(image).enhance(1 + 0.9 * x),
    lambda image, x: ImageEnhance.Brightness(image).enhance(1 + 0.9 * x),
    lambda image, x: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * x),
    lambda image, x: affine(image, 1, 0.3 * x, 0, 0, 1, 0),
    lambda image, x: affine(image, 1, 0, 0, 0.3 * x, 1, 0),
    lambda image, x: affine(image, 1, 0, round(0.45 * x * image.size[0]), 0, 1, 0),
    lambda image, x: affine(image, 1, 0, 0, 0, 1, round(0.45 * x * image.size[1])),
]


class Photos(Dataset):
    """Returns uint8 `[3, height, width]` and a label; repeats the files for 10^7 examples."""

    def __init__(self, request: input_files.InputRequest):
        self._files = sorted((request.data / "train").glob("*/*.jpg"))
        self._request = request

    def __len__(self) -> int:
        return 10**7

    def __getitem__(self, index: int):
        path = self._files[index % len(self._files)]
        with Image.open(path) as opened:
            image = random_resized_crop(opened.convert("RGB"), self._request.image_size)
        if random.random() < 0.5:
            image = ImageOps.mirror(image)
        if self._request.randaugment:
            image = randaugment(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels, input_files.CLASSES.index(path.parent.name)


def main() -> None:
    request = input_files.read_request()
    torch.set_num_threads(1)  # the workers run in parallel
    loader = DataLoader(
        Photos(request),
        batch_size=request.batch,
        num_workers=request.threads,
        persistent_workers=True,
        prefetch_factor=4,
    )
    input_files.serve(iter(loader), "torch", "pillow", "numpy")


if __name__ == "__main__":
    main()
