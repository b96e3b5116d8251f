"""Networks on points, rays and pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TNet(nn.Module):
    """Predict a ``k x k`` transform of the points, as a deviation from the identity."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        self.conv1 = nn.Conv1d(k, 8, 1)
        self.conv2 = nn.Conv1d(8, 16, 1)
        self.fc1 = nn.Linear(16, 12)
        self.fc2 = nn.Linear(12, k * k)
        self.bn1 = nn.BatchNorm1d(8)
        self.bn2 = nn.BatchNorm1d(16)
        self.bn3 = nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.size(0)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = torch.max(x, 2, keepdim=True)[0].view(batch, -1)
        x = self.fc2(F.relu(self.bn3(self.fc1(x))))
        identity = torch.eye(self.k, dtype=x.dtype, device=x.device).view(1, self.k * self.k).repeat(batch, 1)
        return (x + identity).view(-1, self.k, self.k)


class PointNet(nn.Module):
    """Shared layers on every point, a maximum over points, a classifier (Qi et al. 2017)."""

    def __init__(self, num_classes: int = 10, width: int = 8, feature_transform: bool = False) -> None:
        super().__init__()
        self.stn = TNet(3)
        self.conv1 = nn.Conv1d(3, width, 1)
        self.fstn = TNet(width) if feature_transform else None
        self.conv2 = nn.Conv1d(width, 2 * width, 1)
        self.conv3 = nn.Conv1d(2 * width, 4 * width, 1)
        self.bn1 = nn.BatchNorm1d(width)
        self.bn2 = nn.BatchNorm1d(2 * width)
        self.bn3 = nn.BatchNorm1d(4 * width)
        self.fc1 = nn.Linear(4 * width, 16)
        self.bn4 = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(p=0.3)
        self.fc2 = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.bmm(x.transpose(2, 1), self.stn(x)).transpose(2, 1)
        x = F.relu(self.bn1(self.conv1(x)))
        if self.fstn is not None:
            x = torch.bmm(x.transpose(2, 1), self.fstn(x)).transpose(2, 1)
        x = F.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x = torch.max(x, 2)[0]
        x = F.relu(self.bn4(self.dropout(self.fc1(x))))
        return F.log_softmax(self.fc2(x), dim=1)


class PointSegmenter(nn.Module):
    """Each point's own features next to the maximum over all points, repeated for each of them."""

    def __init__(self, width: int = 8, parts: int = 4) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.Conv1d(3, width, 1), nn.BatchNorm1d(width), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv1d(width, 2 * width, 1), nn.BatchNorm1d(2 * width), nn.ReLU())
        self.head = nn.Sequential(nn.Conv1d(3 * width, 12, 1), nn.ReLU(), nn.Conv1d(12, parts, 1))

    def forward(self, x: Tensor) -> Tensor:
        local = self.local(x)
        whole = self.deep(local).max(dim=2, keepdim=True).values.repeat(1, 1, x.shape[2])
        return self.head(torch.cat([local, whole], 1)).transpose(2, 1)


class Siamese(nn.Module):
    """Two images through one trunk; the distance of their features tells whether they match (Koch et al. 2015)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, width, 3),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3),
            nn.ReLU(inplace=True),
        )
        self.embed = nn.Linear(2 * width * 3 * 3, 20)
        self.out = nn.Linear(20, 1)

    def forward_once(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        return torch.sigmoid(self.embed(x.view(x.size()[0], -1)))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.out(torch.abs(self.forward_once(left) - self.forward_once(right)))


class NeRF(nn.Module):
    """Radiance field: positions enter again half-way, directions enter before the colour (Mildenhall et al. 2020)."""

    def __init__(self, depth: int = 4, width: int = 16, frequencies: int = 3, skips: tuple[int, ...] = (2,)) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.skips = skips
        inp = 3 + 3 * 2 * frequencies
        self.input_ch = inp
        self.pts_linears = nn.ModuleList(
            [nn.Linear(inp, width)] + [nn.Linear(width + inp if i in skips else width, width) for i in range(depth - 1)]
        )
        self.feature_linear = nn.Linear(width, width)
        self.alpha_linear = nn.Linear(width, 1)
        self.views_linear = nn.Linear(inp + width, width // 2)
        self.rgb_linear = nn.Linear(width // 2, 3)

    def encode(self, x: Tensor) -> Tensor:
        parts = [x]
        for i in range(self.frequencies):
            parts += [torch.sin(2.0**i * x), torch.cos(2.0**i * x)]
        return torch.cat(parts, -1)

    def forward(self, x: Tensor) -> Tensor:
        points, views = torch.split(x, [3, 3], dim=-1)
        points, views = self.encode(points), self.encode(views)
        h = points
        for i, layer in enumerate(self.pts_linears):
            h = F.relu(layer(h))
            if i in self.skips:
                h = torch.cat([points, h], -1)
        alpha = self.alpha_linear(h)
        h = torch.cat([self.feature_linear(h), views], -1)
        rgb = self.rgb_linear(F.relu(self.views_linear(h)))
        return torch.cat([rgb, alpha], -1)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "pointnet": lambda: (PointNet(), torch.randn(4, 3, 20)),
    "pointnet_feature_transform": lambda: (PointNet(feature_transform=True), torch.randn(4, 3, 20)),
    "point_segmenter": lambda: (PointSegmenter(), torch.randn(2, 3, 16)),
    "siamese": lambda: (Siamese(), (torch.randn(2, 1, 12, 12), torch.randn(2, 1, 12, 12))),
    "nerf": lambda: (NeRF(), torch.randn(10, 6)),
}
