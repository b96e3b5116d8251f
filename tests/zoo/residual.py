"""Residual networks for 32 x 32 images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Lambda(nn.Module):
    """Call a function; what the function closed over is hidden from whoever reads the module's attributes."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class PadShortcut(nn.Module):
    """Option A of the ResNet paper: halve the image, put zero channels on both sides."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.pad = planes // 4

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0)


def padded_by_closure(planes: int) -> nn.Module:
    """Option A with the pad written as a closure over the width."""
    return Lambda(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0))


class PadBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, inplanes: int, planes: int, stride: int, shortcut: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or inplanes != planes:
            self.shortcut = shortcut(planes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class ResNetPad(nn.Module):
    """CIFAR ResNet with padded shortcuts (He et al. 2016, option A); n blocks a stage, 6n + 2 layers."""

    def __init__(
        self, n: int = 3, width: int = 16, num_classes: int = 10, shortcut: Callable[[int], nn.Module] = PadShortcut
    ) -> None:
        super().__init__()
        self.in_planes = width
        self.shortcut = shortcut
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._make_layer(width, n, 1)
        self.layer2 = self._make_layer(2 * width, n, 2)
        self.layer3 = self._make_layer(4 * width, n, 2)
        self.linear = nn.Linear(4 * width, num_classes)

    def _make_layer(self, planes: int, count: int, stride: int) -> nn.Sequential:
        layers = []
        for step in [stride] + [1] * (count - 1):
            layers.append(PadBlock(self.in_planes, planes, step, self.shortcut))
            self.in_planes = planes
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.size()[3])
        out = out.view(out.size(0), -1)
        return self.linear(out)


class ConvBlock(nn.Module):
    """Two 3x3 convolutions; where the width changes the shortcut is a 1x1 convolution without bias or norm."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        same = stride == 1 and inplanes == planes
        self.shortcut = nn.Identity() if same else nn.Conv2d(inplanes, planes, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNetConv(nn.Module):
    """CIFAR ResNet with convolutional shortcuts: n = 3 is ResNet-20, n = 9 is ResNet-56."""

    def __init__(self, n: int = 3, widths: tuple[int, int, int] = (16, 32, 64), num_classes: int = 10) -> None:
        super().__init__()
        a, b, c = widths
        self.conv1 = nn.Conv2d(3, a, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(a)
        self.layer1 = self._stage(n, a, a, 1)
        self.layer2 = self._stage(n, a, b, 2)
        self.layer3 = self._stage(n, b, c, 2)
        self.linear = nn.Linear(c, num_classes)

    @staticmethod
    def _stage(n: int, inplanes: int, planes: int, stride: int) -> nn.Sequential:
        return nn.Sequential(ConvBlock(inplanes, planes, stride), *(ConvBlock(planes, planes) for _ in range(n - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class PreActBottleneck(nn.Module):
    """Norm and activation before each convolution; the projection sees the activated input."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        out = planes * self.expansion
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        if stride != 1 or inplanes != out:
            self.shortcut = nn.Sequential(nn.Conv2d(inplanes, out, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        out += shortcut
        return out


class PreActResNet(nn.Module):
    """Pre-activation ResNet with bottlenecks (He et al. 2016b)."""

    def __init__(self, width: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.body = nn.Sequential(
            PreActBottleneck(width, width),
            PreActBottleneck(4 * width, width),
            PreActBottleneck(4 * width, 2 * width, 2),
            PreActBottleneck(8 * width, 2 * width),
        )
        self.norm = nn.BatchNorm2d(8 * width)
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.body(self.stem(x))))
        return self.head(x.mean((2, 3)))


def _image(size: int = 16) -> Tensor:
    return torch.randn(2, 3, size, size)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "resnet20_pad": lambda: (ResNetPad(), _image()),
    "resnet_pad_closure": lambda: (ResNetPad(n=1, shortcut=padded_by_closure), _image()),
    "resnet20_conv": lambda: (ResNetConv(), _image()),
    "preact_resnet": lambda: (PreActResNet(), _image()),
}
