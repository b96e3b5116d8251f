"""Networks with grouped convolutions, shuffles and gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of the groups, so that the next grouped convolution sees all of them."""
    b, c, h, w = x.size()
    x = x.view(b, groups, c // groups, h, w)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(b, -1, h, w)


class ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, added to the input (Zhang et al. 2018)."""

    def __init__(self, channels: int, groups: int = 3) -> None:
        super().__init__()
        self.groups = groups
        mid = channels // 2
        self.compress = nn.Conv2d(channels, mid, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.dw = nn.Conv2d(mid, mid, 3, padding=1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.expand = nn.Conv2d(mid, channels, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.compress(x)))
        out = channel_shuffle(out, self.groups)
        out = self.bn2(self.dw(out))
        out = self.bn3(self.expand(out))
        return F.relu(x + out)


class ShuffleNet(nn.Module):
    """Two shuffle units of three groups."""

    def __init__(self, channels: int = 24, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.stage = nn.Sequential(ShuffleUnit(channels), ShuffleUnit(channels))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(self.conv1(x))
        return self.fc(x.mean([2, 3]))


class ShuffleV2Unit(nn.Module):
    """Half of the channels pass by, half are convolved; the halves are then shuffled (Ma et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((x1, self.branch(x2)), dim=1), 2)


class ShuffleNetV2(nn.Module):
    """Two units of ShuffleNet V2 between a stem and a last 1x1 convolution."""

    def __init__(self, channels: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.units = nn.Sequential(ShuffleV2Unit(channels), ShuffleV2Unit(channels))
        self.conv5 = nn.Conv2d(channels, 20, 1)
        self.fc = nn.Linear(20, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.units(F.relu(self.bn1(self.conv1(x))))
        return self.fc(F.relu(self.conv5(x)).mean([2, 3]))


class TwoGroupings(nn.Module):
    """A convolution in 2 groups whose output, 12 channels, is read by a convolution in 3 groups."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(12)
        self.conv3 = nn.Conv2d(12, 18, 3, padding=1, groups=3)
        self.bn3 = nn.BatchNorm2d(18)
        self.head = nn.Conv2d(18, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.head(x).flatten(2).mean(-1)


class ResNeXtBlock(nn.Module):
    """Bottleneck with a grouped 3x3 convolution (Xie et al. 2017)."""

    def __init__(self, channels: int, width: int, cardinality: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(width)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=cardinality, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, channels, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn_reduce(self.reduce(x)))
        y = F.relu(self.bn(self.grouped(y)))
        return F.relu(x + self.bn_expand(self.expand(y)))


class ResNeXt(nn.Module):
    """Two blocks of four groups each."""

    def __init__(self, channels: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(ResNeXtBlock(channels, 24, 4) for _ in range(2)))
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((-2, -1)))


class DepthMultiplier(nn.Module):
    """Depthwise convolutions that make two channels of each."""

    def __init__(self, channels: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.depthwise = nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * channels)
        self.pointwise = nn.Conv2d(2 * channels, 12, 1)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn1(self.stem(x)))
        x = F.relu6(self.bn2(self.depthwise(x)))
        x = F.relu(self.pointwise(x))
        return self.fc(F.adaptive_max_pool2d(x, 1).flatten(1))


class Saliency(nn.Module):
    """Ends in a convolution with one output channel and its batch norm."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.tail = nn.Sequential(nn.Conv2d(2 * width, 1, 1), nn.BatchNorm2d(1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        return torch.sigmoid(self.tail(x))


class SpatialGate(nn.Module):
    """Features scaled by a one-channel map in the middle of the network."""

    def __init__(self, width: int = 12, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.gate = nn.Conv2d(width, 1, 1)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x * torch.sigmoid(self.gate(x))
        x = F.relu(self.conv(x))
        return self.fc(x.mean((2, 3)))


class SelectiveKernel(nn.Module):
    """Two branches stacked and weighted by a softmax over branches, for each channel (Li et al. 2019)."""

    def __init__(self, channels: int = 12, reduced: int = 6, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=d, dilation=d), nn.BatchNorm2d(channels), nn.ReLU())
            for d in (1, 2)
        )
        self.fc = nn.Linear(channels, reduced)
        self.fcs = nn.ModuleList(nn.Linear(reduced, channels) for _ in range(2))
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        feats = torch.stack([conv(x) for conv in self.convs], dim=1)
        z = F.relu(self.fc(feats.sum(dim=1).mean((-1, -2))))
        attention = torch.stack([fc(z) for fc in self.fcs], dim=1).softmax(dim=1)
        out = (feats * attention.unsqueeze(-1).unsqueeze(-1)).sum(dim=1)
        return self.head(out.mean((2, 3)))


class CalledTwice(nn.Module):
    """The same block of layers applied twice, each time added to its input."""

    def __init__(self, width: int = 12, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.conv1 = nn.Conv2d(width, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)

    def step(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(self.norm(x))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = self.step(x)
        return self.head(x.mean((2, 3)))


def _image(size: int = 12) -> Tensor:
    return torch.randn(2, 3, size, size)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "shufflenet": lambda: (ShuffleNet(), _image()),
    "shufflenet_v2": lambda: (ShuffleNetV2(), _image()),
    "two_groupings": lambda: (TwoGroupings(), _image()),
    "resnext": lambda: (ResNeXt(), _image()),
    "depth_multiplier": lambda: (DepthMultiplier(), _image()),
    "saliency": lambda: (Saliency(), _image()),
    "spatial_gate": lambda: (SpatialGate(), _image()),
    "selective_kernel": lambda: (SelectiveKernel(), _image()),
    "called_twice": lambda: (CalledTwice(), _image()),
}
