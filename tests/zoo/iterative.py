"""Networks that repeat a step: over time, over neighbours of a graph, over refinements of an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CRNN(nn.Module):
    """Text recognition: convolutions, columns of the feature map as time, two LSTMs (Shi et al. 2017)."""

    def __init__(self, channels: int = 1, hidden: int = 10, classes: int = 7) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(channels, 8, 3, 1, 1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(8, 12, 3, 1, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(inplace=True),
            nn.MaxPool2d((4, 1), (4, 1)),
            nn.Conv2d(12, 14, (2, 1), 1, 0),
            nn.ReLU(inplace=True),
        )
        self.rnn1 = nn.LSTM(14, hidden, bidirectional=True)
        self.between = nn.Linear(2 * hidden, hidden)
        self.rnn2 = nn.LSTM(hidden, hidden, bidirectional=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cnn(x).squeeze(2).permute(2, 0, 1)
        x, _ = self.rnn1(x)
        t, b, h = x.size()
        x = self.between(x.view(t * b, h)).view(t, b, -1)
        x, _ = self.rnn2(x)
        return self.head(x).log_softmax(2)


class GraphConvolution(nn.Module):
    """``adjacency @ x @ weight + bias`` with parameters of its own (Kipf & Welling 2017)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return torch.matmul(adjacency, torch.mm(x, self.weight)) + self.bias


class GCN(nn.Module):
    """Three graph convolutions, the middle one with a shortcut; classifies nodes."""

    def __init__(self, features: int = 6, hidden: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.gc1 = GraphConvolution(features, hidden)
        self.gc2 = GraphConvolution(hidden, hidden)
        self.gc3 = GraphConvolution(hidden, classes)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = F.relu(self.gc1(x, adjacency))
        x = F.dropout(x + F.relu(self.gc2(x, adjacency)), 0.5, training=self.training)
        return F.log_softmax(self.gc3(x, adjacency), dim=1)


class ConvGRU(nn.Module):
    """Gated recurrent unit whose products are convolutions."""

    def __init__(self, hidden: int, inp: int) -> None:
        super().__init__()
        self.convz = nn.Conv2d(hidden + inp, hidden, 3, padding=1)
        self.convr = nn.Conv2d(hidden + inp, hidden, 3, padding=1)
        self.convq = nn.Conv2d(hidden + inp, hidden, 3, padding=1)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        hx = torch.cat([h, x], dim=1)
        z = torch.sigmoid(self.convz(hx))
        r = torch.sigmoid(self.convr(hx))
        q = torch.tanh(self.convq(torch.cat([r * h, x], dim=1)))
        return (1 - z) * h + z * q


class Encoder(nn.Module):
    """Two strided convolutions with instance norm."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 2, 1)
        self.norm1 = nn.InstanceNorm2d(width)
        self.conv2 = nn.Conv2d(width, out, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.norm1(self.conv1(x))))


class FlowEstimator(nn.Module):
    """RAFT-like: correlation of all pairs, and a recurrent unit that refines the flow (Teed & Deng 2020)."""

    def __init__(self, hidden: int = 10, context: int = 8, iterations: int = 3, side: int = 4) -> None:
        super().__init__()
        self.hidden, self.context, self.iterations = hidden, context, iterations
        self.fnet = Encoder(8, 12)
        self.cnet = Encoder(8, hidden + context)
        self.convc = nn.Conv2d(side * side, 12, 1)
        self.convf = nn.Conv2d(2, 8, 7, padding=3)
        self.conv = nn.Conv2d(20, 14, 3, padding=1)
        self.gru = ConvGRU(hidden, context + 14 + 2)
        self.head = nn.Sequential(nn.Conv2d(hidden, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 2, 3, padding=1))

    @staticmethod
    def correlation(left: Tensor, right: Tensor) -> Tensor:
        batch, dim, ht, wd = left.shape
        left, right = left.view(batch, dim, ht * wd), right.view(batch, dim, ht * wd)
        pairs = torch.matmul(right.transpose(1, 2), left) / torch.sqrt(torch.tensor(dim).to(left))
        return pairs.view(batch, ht * wd, ht, wd)

    def forward(self, left: Tensor, right: Tensor) -> list[Tensor]:
        pairs = F.relu(self.convc(self.correlation(self.fnet(left), self.fnet(right))))
        h, inp = torch.split(self.cnet(left), [self.hidden, self.context], dim=1)
        h, inp = torch.tanh(h), torch.relu(inp)
        flow = torch.zeros(left.shape[0], 2, *pairs.shape[2:]).to(left)
        flows = []
        for _ in range(self.iterations):
            moved = F.relu(self.conv(torch.cat([pairs, F.relu(self.convf(flow))], dim=1)))
            h = self.gru(h, torch.cat([inp, moved, flow], dim=1))
            flow = flow + self.head(h)
            flows.append(F.interpolate(flow, scale_factor=4, mode="bilinear", align_corners=True))
        return flows


def _graph(nodes: int = 12) -> Tensor:
    adjacency = (torch.rand(nodes, nodes) < 0.3).float() + torch.eye(nodes)
    return adjacency / adjacency.sum(1, keepdim=True)


def _pair(side: int = 16) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, side, side), torch.randn(2, 3, side, side)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "crnn": lambda: (CRNN(), torch.randn(2, 1, 16, 24)),
    "gcn": lambda: (GCN(), (torch.randn(12, 6), _graph())),
    "raft": lambda: (FlowEstimator(), _pair()),
}
