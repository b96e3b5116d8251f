"""Classifiers built from one kind of convolutional block each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class FlattenNet(nn.Module):
    """VGG-like: the feature map is pooled to 5 x 5 and flattened into the classifier."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(5),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(12 * 5 * 5, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class Res2Block(nn.Module):
    """Bottleneck in 4 scales (Gao et al. 2019): each but the first convolves its split plus the scale before it."""

    def __init__(self, channels: int, width: int = 6, scales: int = 4) -> None:
        super().__init__()
        self.width = width
        self.scales = scales
        self.conv1 = nn.Conv2d(channels, width * scales, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width * scales)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(scales - 1))
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(scales - 1))
        self.conv3 = nn.Conv2d(width * scales, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        splits = torch.split(out, self.width, 1)
        outs = [splits[0]]
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns)):
            y = splits[i + 1] if i == 0 else splits[i + 1] + outs[-1]
            outs.append(F.relu(bn(conv(y))))
        out = self.bn3(self.conv3(torch.cat(outs, 1)))
        return F.relu(out + x)


class Res2Net(nn.Module):
    """A stem, two Res2Net blocks and a linear classifier."""

    def __init__(self, channels: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.layer1 = Res2Block(channels)
        self.layer2 = Res2Block(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class SeparableConv(nn.Module):
    """Depthwise 3x3 convolution, then a pointwise one."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inp, inp, 3, padding=1, groups=inp, bias=False)
        self.pointwise = nn.Conv2d(inp, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class XceptionBlock(nn.Module):
    """Two separable convolutions, pooled, next to a strided 1x1 projection (Chollet 2017)."""

    def __init__(self, inp: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.skip = nn.Conv2d(inp, out, 1, stride=stride, bias=False) if inp != out or stride != 1 else None
        self.skipbn = nn.BatchNorm2d(out) if self.skip is not None else None
        layers: list[nn.Module] = [nn.ReLU(), SeparableConv(inp, out), nn.BatchNorm2d(out)]
        layers += [nn.ReLU(), SeparableConv(out, out), nn.BatchNorm2d(out)]
        if stride != 1:
            layers.append(nn.MaxPool2d(3, stride, 1))
        self.rep = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.skip is None or self.skipbn is None else self.skipbn(self.skip(x))
        return self.rep(x) + skip


class Xception(nn.Module):
    """Entry, middle and exit flow, one block of each."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.block1 = XceptionBlock(8, 16, 2)
        self.block2 = XceptionBlock(16, 16)
        self.conv3 = SeparableConv(16, 24)
        self.bn3 = nn.BatchNorm2d(24)
        self.fc = nn.Linear(24, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.block2(self.block1(x))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1))


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the means of all channels (Hu et al. 2018)."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class InvertedResidual(nn.Module):
    """MobileNet block with a squeeze-and-excite gate on the expanded width."""

    def __init__(self, inp: int, out: int, stride: int, expand: int = 2) -> None:
        super().__init__()
        hidden = inp * expand
        self.use_res = stride == 1 and inp == out
        self.conv = nn.Sequential(
            nn.Conv2d(inp, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Hardswish(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            SqueezeExcite(hidden),
            nn.Hardswish(),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res else self.conv(x)


class SqueezeExciteNet(nn.Module):
    """MobileNetV3-like classifier."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            InvertedResidual(8, 8, 1),
            InvertedResidual(8, 12, 2),
            InvertedResidual(12, 12, 1),
        )
        self.classifier = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


class DenseLayer(nn.Module):
    """Norm, activation, 1x1 and 3x3 convolution; returns only the new features."""

    def __init__(self, inp: int, growth: int, bottleneck: int = 2) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inp)
        self.conv1 = nn.Conv2d(inp, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseNet(nn.Module):
    """Two dense blocks with a transition between them (Huang et al. 2017)."""

    def __init__(self, growth: int = 6, layers: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        width = 2 * growth
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.block1 = nn.ModuleList(DenseLayer(width + i * growth, growth) for i in range(layers))
        width += layers * growth
        self.transition = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)
        )
        width //= 2
        self.block2 = nn.ModuleList(DenseLayer(width + i * growth, growth) for i in range(layers))
        width += layers * growth
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, num_classes)

    @staticmethod
    def _run(block: nn.ModuleList, x: Tensor) -> Tensor:
        features = [x]
        for layer in block:
            features.append(layer(features))
        return torch.cat(features, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition(self._run(self.block1, self.stem(x)))
        x = F.relu(self.norm(self._run(self.block2, x)))
        return self.classifier(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


class WeightNormNet(nn.Module):
    """Convolutions whose weight is a direction times a length (Salimans & Kingma 2016)."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = weight_norm(nn.Conv2d(3, 8, 3, padding=1))
        self.conv2 = weight_norm(nn.Conv2d(8, 12, 3, padding=1))
        self.conv3 = weight_norm(nn.Conv2d(12, 12, 3, padding=1))
        self.fc = weight_norm(nn.Linear(12, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv1(x), 0.1)
        x = F.max_pool2d(F.leaky_relu(self.conv2(x), 0.1), 2)
        x = x + F.leaky_relu(self.conv3(x), 0.1)
        return self.fc(x.amax((2, 3)))


class StdConv2d(nn.Conv2d):
    """Convolution with its weight standardised over the fan-in (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        v, m = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, unbiased=False)
        w = (w - m) / torch.sqrt(v + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class WeightStandardNet(nn.Module):
    """BiT-like residual network: standardised convolutions and group norm."""

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = StdConv2d(3, width, 3, 2, 1, bias=False)
        self.gn1 = nn.GroupNorm(4, width)
        self.conv1 = StdConv2d(width, width // 2, 3, padding=1, bias=False)
        self.gn2 = nn.GroupNorm(4, width // 2)
        self.conv2 = StdConv2d(width // 2, width, 3, padding=1, bias=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        # A standardised weight has a variance of one whatever its fan-in; the norms keep that from growing.
        x = self.stem(x)
        y = self.conv1(F.relu(self.gn1(x)))
        y = self.conv2(F.relu(self.gn2(y)))
        return self.head(torch.mean(x + y, dim=(2, 3)))


def _image(size: int = 16) -> Tensor:
    return torch.randn(2, 3, size, size)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "flatten_pool5": lambda: (FlattenNet(), _image()),
    "res2net": lambda: (Res2Net(), _image()),
    "xception": lambda: (Xception(), _image()),
    "squeeze_excite": lambda: (SqueezeExciteNet(), _image()),
    "densenet": lambda: (DenseNet(), _image(8)),
    "weight_norm": lambda: (WeightNormNet(), _image(8)),
    "weight_standard": lambda: (WeightStandardNet(), _image()),
}
