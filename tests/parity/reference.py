"""Writes golden.json: the results of timm and torchvision for the cases of cases.py, in float64.

`make parity` runs it in a separate environment, of tests/parity/requirements.txt.
"""

import functools
import json
import re
from pathlib import Path

import numpy as np
import torch

_register_fake = torch.library.register_fake


def _register_if_known(name, *arguments, **options):
    """Registers a fake operator, unless it is one of torchvision's that its build lacks.

    torchvision's C++ operators are missing if it was built for another PyTorch. The models need
    none of them, so importing it must not fail.
    """
    register = _register_fake(name, *arguments, **options)

    def attempt(function):
        try:
            return register(function)
        except RuntimeError:
            if not name.startswith("torchvision::"):
                raise
            return function

    return attempt


torch.library.register_fake = _register_if_known

import timm  # noqa: E402
import torchvision  # noqa: E402
from timm.layers import BatchNormAct2d, BlurPool2d  # noqa: E402
from timm.models.resnet import BasicBlock  # noqa: E402
from timm.models.resnet import ResNet as TimmResNet  # noqa: E402
from timm.models.resnetv2 import PreActBasic  # noqa: E402
from torch import nn  # noqa: E402

from tests.parity.cases import BLUR, CASES, CLASSES, LABELS, Case, images, tensor  # noqa: E402

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("golden.json")


def model_of(case: Case) -> nn.Module:
    """Builds timm's or torchvision's model, or one made of timm's blocks if they have none."""
    if case.reference == "torchvision":
        name = case.name.removesuffix("_100").replace("mobilenetv", "mobilenet_v")
        return getattr(torchvision.models, name)(num_classes=CLASSES)
    if case.name == "resnet20":
        return _cifar_resnet(blocks=3)
    if case.name == "wrn16_4":
        return _wide_resnet(blocks=2, width=4)
    options = {"aa_layer": BlurPool2d} if case.settings == BLUR else {}
    name = case.name.removesuffix("_v1")
    model = timm.create_model(name, num_classes=CLASSES, **options)
    if name != case.name:
        _as_v1(model)
    return model


def _as_v1(model: nn.Module) -> None:
    """Moves the stride to the first convolution of each block."""
    for module in model.modules():
        if isinstance(module, timm.models.resnet.Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)


class _Sequential(nn.Sequential):
    """Applies a head with our name to the spatial means."""

    def forward(self, x):
        for name, module in self.named_children():
            x = module(x.mean((2, 3)) if name in ("fc", "head") else x)
        return x


def _cifar_resnet(blocks: int) -> nn.Module:
    model = _Sequential()
    model.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    model.bn1, model.relu = nn.BatchNorm2d(16), nn.ReLU()
    inputs = 16
    for stage, width in enumerate((16, 32, 64), start=1):
        layer = nn.Sequential()
        for index in range(blocks):
            stride = 2 if stage > 1 and index == 0 else 1
            shortcut = None
            if stride != 1 or inputs != width:
                shortcut = timm.models.resnet.downsample_conv(inputs, width, 1, stride)
            layer.append(BasicBlock(inputs, width, stride, shortcut))
            inputs = width
        setattr(model, f"layer{stage}", layer)
    model.fc = nn.Linear(inputs, CLASSES)
    assert set(model.state_dict()) < set(TimmResNet(BasicBlock, (3, 3, 3, 3)).state_dict())
    return model


def _wide_resnet(blocks: int, width: int) -> nn.Module:
    """Builds the network with the names of our export: each layer's path in our model."""
    model = _Sequential()
    model.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    inputs = 16
    for stage in range(3):
        for index in range(blocks):
            block = PreActBasic(
                inputs,
                16 * 2**stage * width,
                stride=2 if stage > 0 and index == 0 else 1,
                bottle_ratio=1.0,
                proj_layer=timm.models.resnetv2.DownsampleConv if index == 0 else None,
                act_layer=nn.ReLU,
                conv_layer=functools.partial(timm.layers.create_conv2d, bias=False),
                norm_layer=functools.partial(BatchNormAct2d, eps=1e-5),
            )
            setattr(model, f"stage{stage + 1}_block{index + 1}", block)
            inputs = 16 * 2**stage * width
    model.head_norm = BatchNormAct2d(inputs, eps=1e-5)
    model.head = nn.Linear(inputs, CLASSES)
    return model


def name_of(name: str) -> str:
    """Returns our name for a weight of a network built in this file."""
    return name.replace("downsample.conv", "projection")


def compute(case: Case) -> dict:
    """Computes logits in evaluation and training mode, and the gradient's norm in training."""
    model = model_of(case).double()
    state = {
        name: torch.from_numpy(tensor(name_of(name), tuple(value.shape))).double()
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    x = torch.from_numpy(images(case)).double().permute(0, 3, 1, 2)
    model.eval()
    with torch.no_grad():
        evaluation = model(x).numpy()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    logits = model(x)
    nn.functional.cross_entropy(logits, torch.from_numpy(LABELS)).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients)).item()
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "evaluation": evaluation.tolist(),
        "training": logits.detach().numpy().tolist(),
        "gradient_norm": norm,
    }


def count(name: str, image_size: int) -> dict[str, int]:
    """Counts timm's parameters, and the multiply-adds of its convolutions and dense layers."""
    with torch.device("meta"):  # shapes without numbers
        model = timm.create_model(name.removesuffix("_v1")).eval()
        if name.endswith("_v1"):
            _as_v1(model)
        total = 0

        def add(module, _inputs, output):
            nonlocal total
            positions = output.shape[2:].numel() if isinstance(module, nn.Conv2d) else 1
            total += positions * module.weight.numel()

        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(add)
        model(torch.zeros(1, 3, image_size, image_size))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"image_size": image_size, "parameters": parameters, "multiply_adds": total}


def main() -> None:
    versions = {
        module.__name__: module.__version__.partition("+")[0]
        for module in (torch, timm, torchvision, np)
    }
    values = {}
    for case in CASES:
        values[case.key] = compute(case)
        print(case.key, values[case.key]["gradient_norm"], flush=True)
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `(\w+)` \| (\d+), 1000 ", text, re.MULTILINE)
    counts = {name: count(name, int(size)) for name, size in lines}
    content = {"versions": versions, "counts": counts, "cases": values}
    GOLDEN.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
