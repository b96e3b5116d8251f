"""Feature pyramids and detectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Backbone(nn.Module):
    """Four strided stages; returns the last three feature maps."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = Conv(3, width, 3, 2)
        self.stage3 = Conv(width, 2 * width, 3, 2)
        self.stage4 = Conv(2 * width, 3 * width, 3, 2)
        self.stage5 = Conv(3 * width, 4 * width, 3, 2)
        self.channels = [2 * width, 3 * width, 4 * width]

    def forward(self, x: Tensor) -> list[Tensor]:
        c3 = self.stage3(self.stem(x))
        c4 = self.stage4(c3)
        return [c3, c4, self.stage5(c4)]


class FPN(nn.Module):
    """Lateral 1x1 convolutions, added top-down, smoothed (Lin et al. 2017)."""

    def __init__(self, in_channels: list[int], out_channels: int) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in in_channels)
        self.layer_blocks = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in in_channels)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        last = self.inner_blocks[-1](xs[-1])
        results = [self.layer_blocks[-1](last)]
        for i in range(len(xs) - 2, -1, -1):
            lateral = self.inner_blocks[i](xs[i])
            last = lateral + F.interpolate(last, size=lateral.shape[-2:], mode="nearest")
            results.insert(0, self.layer_blocks[i](last))
        return results


class PyramidSegmenter(nn.Module):
    """The levels of an FPN, enlarged to one size and added up, make a segmentation."""

    def __init__(self, width: int = 12, classes: int = 4) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.fpn = FPN(self.backbone.channels, width)
        self.predict = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = self.fpn(self.backbone(x))
        size = levels[0].shape[2:]
        total = levels[0]
        for level in levels[1:]:
            total = total + F.interpolate(level, size=size, mode="bilinear", align_corners=False)
        return F.interpolate(self.predict(F.relu(total)), size=x.shape[2:], mode="bilinear", align_corners=False)


class SharedHeads(nn.Module):
    """RetinaNet-like: the same two towers read all levels, and their answers are laid end to end."""

    def __init__(self, width: int = 12, anchors: int = 2, classes: int = 5) -> None:
        super().__init__()
        self.num_classes = classes
        self.backbone = Backbone()
        self.fpn = FPN(self.backbone.channels, width)
        self.cls_tower = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU())
        self.cls_logits = nn.Conv2d(width, anchors * classes, 3, padding=1)
        self.box_tower = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.box_pred = nn.Conv2d(width, anchors * 4, 3, padding=1)

    @staticmethod
    def _flat(x: Tensor, k: int) -> Tensor:
        n, _, h, w = x.shape
        return x.view(n, -1, k, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, k)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = [], []
        for feature in self.fpn(self.backbone(x)):
            logits.append(self._flat(self.cls_logits(self.cls_tower(feature)), self.num_classes))
            boxes.append(self._flat(self.box_pred(self.box_tower(feature)), 4))
        return torch.cat(logits, dim=1), torch.cat(boxes, dim=1)


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, added to their input."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.cv1 = Conv(c, c, 3)
        self.cv2 = Conv(c, c, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Chunk in two, feed the second half through a chain, concatenate every link of it."""

    def __init__(self, c1: int, c2: int, n: int = 2) -> None:
        super().__init__()
        self.c = c2 // 2
        self.cv1 = Conv(c1, 2 * self.c, 1)
        self.cv2 = Conv((2 + n) * self.c, c2, 1)
        self.m = nn.ModuleList(Bottleneck(self.c) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class SPPF(nn.Module):
    """The same max pool three times over, all results concatenated."""

    def __init__(self, c1: int, c2: int, k: int = 5) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c1 // 2)
        self.cv2 = Conv(c1 // 2 * 4, c2)
        self.m = nn.MaxPool2d(k, 1, k // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class Detect(nn.Module):
    """Decoupled head: boxes as distributions over bins, and classes, from branches of their own on each level."""

    def __init__(self, ch: list[int], nc: int = 4, reg_max: int = 4) -> None:
        super().__init__()
        self.nc, self.reg_max = nc, reg_max
        self.no = nc + 4 * reg_max
        c2, c3 = 16, max(ch[0], 8)
        self.cv2 = nn.ModuleList(
            nn.Sequential(Conv(x, c2, 3), Conv(c2, c2, 3), nn.Conv2d(c2, 4 * reg_max, 1)) for x in ch
        )
        self.cv3 = nn.ModuleList(nn.Sequential(Conv(x, c3, 3), Conv(c3, c3, 3), nn.Conv2d(c3, nc, 1)) for x in ch)
        self.dfl = nn.Conv2d(reg_max, 1, 1, bias=False)

    def forward(self, xs: list[Tensor]) -> Tensor:
        outs = [torch.cat((a(x), b(x)), 1) for a, b, x in zip(self.cv2, self.cv3, xs)]
        shape = outs[0].shape
        box, cls = torch.cat([o.view(shape[0], self.no, -1) for o in outs], 2).split((self.reg_max * 4, self.nc), 1)
        b, _, a = box.shape
        box = self.dfl(box.view(b, 4, self.reg_max, a).transpose(2, 1).softmax(1)).view(b, 4, a)
        return torch.cat((box, cls.sigmoid()), 1)


class YOLO(nn.Module):
    """Two levels of a YOLOv8-like detector: C2f stages, SPPF, one step top-down, a decoupled head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = Conv(3, width, 3, 2)
        self.down1 = Conv(width, 2 * width, 3, 2)
        self.c2f1 = C2f(2 * width, 2 * width)
        self.down2 = Conv(2 * width, 4 * width, 3, 2)
        self.c2f2 = C2f(4 * width, 4 * width, 1)
        self.sppf = SPPF(4 * width, 4 * width)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.neck = C2f(6 * width, 2 * width, 1)
        self.detect = Detect([2 * width, 4 * width])

    def forward(self, x: Tensor) -> Tensor:
        p3 = self.c2f1(self.down1(self.stem(x)))
        p4 = self.sppf(self.c2f2(self.down2(p3)))
        p3 = self.neck(torch.cat([self.up(p4), p3], 1))
        return self.detect([p3, p4])


class BiFPNLayer(nn.Module):
    """Two-way pyramid whose inputs are mixed by learned non-negative weights (Tan et al. 2020)."""

    def __init__(self, channels: int, epsilon: float = 1e-4) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.p4_w1 = nn.Parameter(torch.ones(2))
        self.p3_w1 = nn.Parameter(torch.ones(2))
        self.p4_w2 = nn.Parameter(torch.ones(3))
        self.p5_w2 = nn.Parameter(torch.ones(2))
        self.conv4_up = self._separable(channels)
        self.conv3_up = self._separable(channels)
        self.conv4_down = self._separable(channels)
        self.conv5_down = self._separable(channels)

    @staticmethod
    def _separable(c: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(c, c, 3, 1, 1, groups=c, bias=False), nn.Conv2d(c, c, 1), nn.BatchNorm2d(c))

    def _weights(self, w: Tensor) -> Tensor:
        w = F.relu(w)
        return w / (torch.sum(w, dim=0) + self.epsilon)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        p3, p4, p5 = xs
        w = self._weights(self.p4_w1)
        mid = self.conv4_up(F.silu(w[0] * p4 + w[1] * F.interpolate(p5, scale_factor=2, mode="nearest")))
        w = self._weights(self.p3_w1)
        out3 = self.conv3_up(F.silu(w[0] * p3 + w[1] * F.interpolate(mid, scale_factor=2, mode="nearest")))
        w = self._weights(self.p4_w2)
        out4 = self.conv4_down(F.silu(w[0] * p4 + w[1] * mid + w[2] * F.max_pool2d(out3, 2)))
        w = self._weights(self.p5_w2)
        out5 = self.conv5_down(F.silu(w[0] * p5 + w[1] * F.max_pool2d(out4, 2)))
        return [out3, out4, out5]


class BiFPN(nn.Module):
    """Backbone, two BiFPN layers, and one head shared by the levels."""

    def __init__(self, channels: int = 12, classes: int = 4) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in self.backbone.channels)
        self.layers = nn.ModuleList(BiFPNLayer(channels) for _ in range(2))
        self.head = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        xs = [conv(c) for conv, c in zip(self.lateral, self.backbone(x))]
        for layer in self.layers:
            xs = layer(xs)
        return [self.head(p) for p in xs]


def _image(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "fpn": lambda: (PyramidSegmenter(), _image()),
    "fpn_shared_heads": lambda: (SharedHeads(), _image()),
    "yolo": lambda: (YOLO(), _image()),
    "bifpn": lambda: (BiFPN(), _image()),
}
