"""The CIFAR-10 images and networks in ``../shared/data``, where that folder is there."""

from __future__ import annotations

import io
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

DATA = next((p / "shared" / "data" for p in Path(__file__).resolve().parents if (p / "shared" / "data").is_dir()), None)
BLOCKS = {"resnet20": 3, "resnet56": 9}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, ReLU last."""

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(given, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """CIFAR ResNet of three stages, 16, 32 and 64 wide (He et al., 2016)."""

    def __init__(self, blocks: int, given: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(blocks)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), *(Block(32, 32, 1) for _ in range(blocks - 1)))
        self.layer3 = nn.Sequential(Block(32, 64, 2), *(Block(64, 64, 1) for _ in range(blocks - 1)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def network(name: str) -> nn.Module:
    """Return a trained network, in eval mode."""
    assert DATA is not None
    model = ResNet(BLOCKS[name])
    model.load_state_dict(load_file(DATA / f"{name}.safetensors"))
    return model.eval().to(memory_format=torch.channels_last)


def images(split: str) -> tuple[Tensor, Tensor]:
    """Return normalised images ``[n, 3, 32, 32]`` and labels ``[n]`` of "train" or "test"."""
    assert DATA is not None
    with tarfile.open(DATA / f"cifar10-{split}.tar") as archive:
        parts = {Path(member.name).name: archive.extractfile(member).read() for member in archive if member.isfile()}
    rows = [tuple(map(int, row.split(","))) for row in parts["index.csv"].decode().split()[1:]]
    ends = np.cumsum([0, *(size for _, size in rows)])
    pixels = [np.asarray(Image.open(io.BytesIO(parts["images.bin"][a:b])).convert("RGB")) for a, b in pairwise(ends)]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
    return x.contiguous(memory_format=torch.channels_last), torch.tensor([label for label, _ in rows])


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of images, in percent, whose largest logit is that of their label."""
    right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(100), y.split(100)))
    return 100 * right / len(y)
