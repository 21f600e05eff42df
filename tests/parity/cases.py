"""The inputs to both sides of the comparison: models, weights, images and labels. Only NumPy."""

import re
import zlib
from typing import NamedTuple

import numpy as np

CLASSES = 10


class Case(NamedTuple):
    """One of our networks, and the library that has the same one.

    Attributes:
        reference: timm or torchvision; also whose names the weights have.
        settings: values for `--set` in addition to the model's name.
    """

    name: str
    reference: str
    image_size: int = 64
    settings: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return " ".join([self.reference, self.name, *self.settings])


BLUR = ("model.blur_pool=true",)
EPSILON = ("model.batch_norm_epsilon=0.001",)  # as in torchvision's MobileNetV3
CASES = [
    Case("resnet18", "timm"),
    Case("resnet50", "timm", 75),  # odd sizes at every stage
    Case("resnet50_v1", "timm"),
    Case("resnet101", "timm"),
    Case("resnet18d", "timm", 75),
    Case("resnet50d", "timm", 75),
    Case("seresnet18", "timm"),
    Case("seresnet50", "timm"),
    Case("resnetrs50", "timm", 75),
    Case("resnext50_32x4d", "timm"),
    Case("wide_resnet50_2", "timm"),
    Case("resnet18", "timm", 75, BLUR),
    Case("resnet50", "timm", 64, BLUR),
    Case("resnet50d", "timm", 96, BLUR),
    Case("resnet20", "timm", 33),
    Case("wrn16_4", "timm", 33),
    Case("vgg11_bn", "timm"),
    Case("mobilenetv2_100", "timm", 107),
    Case("mobilenetv2_140", "timm", 160),
    Case("mobilenetv3_large_100", "timm", 75),
    Case("mobilenetv3_small_100", "timm"),
    Case("resnet34", "torchvision", 107),
    Case("resnet50", "torchvision"),
    Case("vgg13_bn", "torchvision", 97),
    Case("mobilenetv2_100", "torchvision", 96),
    Case("mobilenetv3_large_100", "torchvision", 64, EPSILON),
    Case("mobilenetv3_small_100", "torchvision", 75, EPSILON),
]


def images(case: Case) -> np.ndarray:
    """Returns normally distributed images, float32 `[4, size, size, 3]`."""
    shape = (4, case.image_size, case.image_size, 3)
    return np.random.default_rng(1).standard_normal(shape, np.float32)


# The last batch norm of a bottleneck.
_ENDS_A_BRANCH = re.compile(r"^layer.*bn3\.")

LABELS = np.array([3, 1, 4, 1])


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float32 weights for a PyTorch name, a function of name and shape alone.

    No value equals its usual initial value, with which a wrong block could pass for a right one.
    The values also let float32 tell a right network from a wrong one (checked by comparing
    PyTorch's float32 with its float64). Biases are mostly positive, because the batch norm after a
    channel that ReLU almost silences magnifies its rounding errors. Bottlenecks end with small
    scales, because gradients grow with each block if branch and shortcut contribute equally.
    """
    random = np.random.default_rng(zlib.crc32(name.encode()))
    size = int(np.prod(shape))
    branch = 0.2 if _ENDS_A_BRANCH.search(name) else 1.0
    if name.endswith("running_var"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith(("bias", "running_mean")):
        return branch * (0.5 + 0.2 * random.standard_normal(shape, np.float32))
    if len(shape) == 1:
        sign = random.choice([-1.0, 1.0], shape, p=[0.2, 0.8])
        return (branch * sign * random.uniform(0.3, 0.9, shape)).astype(np.float32)
    # Drawn flat, since one side's dense layer can be the other's convolution.
    values = np.sqrt(2 * shape[0] / size, dtype=np.float32) * random.standard_normal(
        size, np.float32
    )
    return values.reshape(shape)
