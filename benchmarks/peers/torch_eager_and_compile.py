"""PyTorch, channels_last; `--variant compile` compiles model and loss with torch.compile.

bfloat16 is torch.autocast, which keeps weights and batch norm in float32 as ours does.
"""

from benchmarks.peers import protocol  # first: its clock starts at import  # isort: skip

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]


class ConvNorm(nn.Sequential):
    def __init__(self, channels, filters: int, kernel_size: int, stride: int = 1, relu=True):
        super().__init__(
            nn.Conv2d(channels, filters, kernel_size, stride, kernel_size // 2, bias=False),
            nn.BatchNorm2d(filters, protocol.BN_EPSILON, 1 - protocol.BN_MOMENTUM),
            *([nn.ReLU(inplace=True)] if relu else []),
        )


class Block(nn.Module):
    def __init__(self, channels: int, filters: int, stride: int, residual: nn.Module):
        super().__init__()
        self.residual = residual
        same = stride == 1 and channels == filters
        self.shortcut = (
            nn.Identity() if same else ConvNorm(channels, filters, 1, stride, relu=False)
        )

    def forward(self, x):
        return torch.relu(self.residual(x) + self.shortcut(x))


def basic(channels: int, width: int, stride: int) -> Block:
    residual = nn.Sequential(
        ConvNorm(channels, width, 3, stride), ConvNorm(width, width, 3, relu=False)
    )
    return Block(channels, width, stride, residual)


def bottleneck(channels: int, width: int, stride: int) -> Block:
    residual = nn.Sequential(
        ConvNorm(channels, width, 1),
        ConvNorm(width, width, 3, stride),
        ConvNorm(width, 4 * width, 1, relu=False),
    )
    return Block(channels, 4 * width, stride, residual)


def make_model(request: protocol.Request) -> nn.Module:
    """Images `[batch, channels, height, width]` to logits."""
    if request.model == "dense":
        pixels = request.channels * request.image_size**2
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, request.classes))
    if request.model == "resnet20":
        layers, channels = [ConvNorm(3, 16, 3)], 16
        block, expansion, widths, depths = basic, 1, (16, 32, 64), (3, 3, 3)
    else:
        layers, channels = [ConvNorm(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
        block, expansion, widths, depths = bottleneck, 4, (64, 128, 256, 512), (3, 4, 6, 3)
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for index in range(depth):
            layers.append(block(channels, width, 2 if stage > 0 and index == 0 else 1))
            channels = width * expansion
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, request.classes)]
    return nn.Sequential(*layers, *head)


def main() -> None:
    request = protocol.read_request()
    torch.set_num_threads(request.threads)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.normal(size=request.image_shape).astype(np.float32))
    images = images.permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    labels = torch.from_numpy(random.integers(0, request.classes, request.batch))
    model = make_model(request).to(memory_format=torch.channels_last).train()
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": kernels, "weight_decay": protocol.WEIGHT_DECAY}, {"params": others}],
        protocol.LEARNING_RATE,
        protocol.MOMENTUM,
        nesterov=True,
        fused=True,  # its fastest on a CPU
    )
    loss_function = nn.CrossEntropyLoss(label_smoothing=protocol.LABEL_SMOOTHING)

    def forward(images, labels):
        with torch.autocast("cpu", torch.bfloat16, enabled=request.precision == "bfloat16"):
            logits = model(images)
        logits = logits.float()
        return loss_function(logits, labels), (logits.argmax(-1) == labels).float().mean()

    if request.variant == "compile":
        forward = torch.compile(forward)

    def run(num_steps: int) -> tuple[int, float]:
        total_accuracy, loss = torch.zeros(()), torch.zeros(())
        for _ in range(num_steps):
            loss, accuracy = forward(images, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total_accuracy += accuracy
        return num_steps, loss.item()

    parameters = sum(p.numel() for p in model.parameters())
    protocol.serve(run, parameters, protocol.versions("torch", "numpy"))


if __name__ == "__main__":
    main()
