"""One-dimensional convolutional networks for sound and time series."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GlobalLayerNorm(nn.Module):
    """Norm over channels and time together, scale and shift per channel."""

    def __init__(self, channels: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.ones(1, channels, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, y: Tensor) -> Tensor:
        mean = y.mean(dim=(1, 2), keepdim=True)
        var = torch.pow(y - mean, 2).mean(dim=(1, 2), keepdim=True)
        return self.gamma * (y - mean) / torch.pow(var + self.eps, 0.5) + self.beta


class TasBlock(nn.Module):
    """1x1, dilated depthwise and two 1x1 convolutions: one to the residual stream, one to the sum of skips."""

    def __init__(
        self, bottleneck: int, hidden: int, skip: int, dilation: int, norm: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv1d(bottleneck, hidden, 1),
            nn.PReLU(),
            norm(hidden),
            nn.Conv1d(hidden, hidden, 3, padding=dilation, dilation=dilation, groups=hidden),
            nn.PReLU(hidden),
            norm(hidden),
        )
        self.res_conv = nn.Conv1d(hidden, bottleneck, 1)
        self.skip_conv = nn.Conv1d(hidden, skip, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return self.res_conv(y), self.skip_conv(y)


class ConvTasNet(nn.Module):
    """Speech separation: learned filters, a mask for each source, learned synthesis (Luo & Mesgarani 2019)."""

    def __init__(
        self, n_src: int = 2, filters: int = 16, kernel: int = 8, norm: Callable[[int], nn.Module] = GlobalLayerNorm
    ) -> None:
        super().__init__()
        bottleneck, hidden, skip = 10, 14, 12
        self.n_src = n_src
        self.n_filters = filters
        self.encoder = nn.Conv1d(1, filters, kernel, stride=kernel // 2, bias=False)
        self.norm = norm(filters)
        self.bottleneck = nn.Conv1d(filters, bottleneck, 1)
        self.tcn = nn.ModuleList(TasBlock(bottleneck, hidden, skip, 2**i, norm) for i in range(3))
        self.mask_net = nn.Sequential(nn.PReLU(), nn.Conv1d(skip, n_src * filters, 1), nn.Sigmoid())
        self.decoder = nn.ConvTranspose1d(filters, 1, kernel, stride=kernel // 2, bias=False)

    def forward(self, wave: Tensor) -> Tensor:
        w = F.relu(self.encoder(wave))
        batch, _, frames = w.shape
        x = self.bottleneck(self.norm(w))
        total: Tensor | float = 0.0
        for block in self.tcn:
            residual, skip = block(x)
            x = x + residual
            total = total + skip
        masks = self.mask_net(total).view(batch, self.n_src, self.n_filters, frames)
        masked = w.unsqueeze(1) * masks
        sources = self.decoder(masked.view(batch * self.n_src, self.n_filters, frames))
        return sources.view(batch, self.n_src, -1)


class WaveNet(nn.Module):
    """Gated dilated causal convolutions; the skips of all layers are added up (van den Oord et al. 2016)."""

    def __init__(
        self, classes: int = 16, residual: int = 12, dilated: int = 10, skip: int = 14, layers: int = 4
    ) -> None:
        super().__init__()
        self.dilations = [2 ** (i % 3) for i in range(layers)]
        self.start_conv = nn.Conv1d(classes, residual, 1)
        self.filter_convs = nn.ModuleList(nn.Conv1d(residual, dilated, 2, dilation=d) for d in self.dilations)
        self.gate_convs = nn.ModuleList(nn.Conv1d(residual, dilated, 2, dilation=d) for d in self.dilations)
        # The last layer's residual output would be read by nobody.
        self.residual_convs = nn.ModuleList(nn.Conv1d(dilated, residual, 1) for _ in range(layers - 1))
        self.skip_convs = nn.ModuleList(nn.Conv1d(dilated, skip, 1) for _ in range(layers))
        self.end_conv1 = nn.Conv1d(skip, 18, 1)
        self.end_conv2 = nn.Conv1d(18, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start_conv(x)
        skip: Tensor | int = 0
        for i in range(len(self.dilations)):
            padded = F.pad(x, (self.dilations[i], 0))
            z = torch.tanh(self.filter_convs[i](padded)) * torch.sigmoid(self.gate_convs[i](padded))
            skip = self.skip_convs[i](z) + skip
            if i < len(self.residual_convs):
                x = x + self.residual_convs[i](z)
        return self.end_conv2(F.relu(self.end_conv1(F.relu(skip))))


class Chomp1d(nn.Module):
    """Cut off what padding added on the right, which makes the convolution causal."""

    def __init__(self, chomp_size: int) -> None:
        super().__init__()
        self.chomp_size = chomp_size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.chomp_size].contiguous()


class TemporalBlock(nn.Module):
    """Two causal convolutions and a shortcut."""

    def __init__(self, inp: int, out: int, dilation: int, kernel: int = 3) -> None:
        super().__init__()
        padding = (kernel - 1) * dilation
        self.net = nn.Sequential(
            nn.Conv1d(inp, out, kernel, padding=padding, dilation=dilation),
            Chomp1d(padding),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv1d(out, out, kernel, padding=padding, dilation=dilation),
            Chomp1d(padding),
            nn.ReLU(),
            nn.Dropout(0.1),
        )
        self.downsample = nn.Conv1d(inp, out, 1) if inp != out else None

    def forward(self, x: Tensor) -> Tensor:
        res = x if self.downsample is None else self.downsample(x)
        return F.relu(self.net(x) + res)


class TCN(nn.Module):
    """Temporal convolutional network; the answer is read off the last step (Bai et al. 2018)."""

    def __init__(self, inp: int = 3, channels: tuple[int, ...] = (8, 12, 12), num_classes: int = 5) -> None:
        super().__init__()
        widths = (inp, *channels)
        self.network = nn.Sequential(*(TemporalBlock(widths[i], widths[i + 1], 2**i) for i in range(len(channels))))
        self.linear = nn.Linear(channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.network(x)[:, :, -1])


class AttentivePooling(nn.Module):
    """Speaker embedding: weighted mean and deviation over time, concatenated (Okabe et al. 2018)."""

    def __init__(self, mels: int = 8, width: int = 16, dim: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(mels, width, 5, padding=2)
        self.bn1 = nn.BatchNorm1d(width)
        self.conv2 = nn.Conv1d(width, width, 3, dilation=2, padding=2)
        self.attention = nn.Sequential(nn.Conv1d(width, 10, 1), nn.Tanh(), nn.Conv1d(10, width, 1), nn.Softmax(dim=2))
        self.bn2 = nn.BatchNorm1d(2 * width)
        self.fc = nn.Linear(2 * width, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(F.relu(self.conv1(x)))
        x = F.relu(self.conv2(x))
        w = self.attention(x)
        mu = torch.sum(x * w, dim=2)
        sg = torch.sqrt((torch.sum((x**2) * w, dim=2) - mu**2).clamp(min=1e-5))
        return F.normalize(self.fc(self.bn2(torch.cat((mu, sg), 1))), dim=1)


class ConvLSTMTagger(nn.Module):
    """Convolutions around a recurrent layer, which is one opaque call."""

    def __init__(self, features: int = 5, width: int = 12, tags: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(features, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, 10, 3, padding=1)
        self.lstm = nn.LSTM(10, 8, batch_first=True, bidirectional=True)
        self.fc1 = nn.Linear(16, 14)
        self.fc2 = nn.Linear(14, tags)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x)))).transpose(1, 2)
        x, _ = self.lstm(x)
        return self.fc2(F.relu(self.fc1(x)))


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "conv_tasnet": lambda: (ConvTasNet(), torch.randn(2, 1, 64)),
    "conv_tasnet_bn": lambda: (ConvTasNet(norm=nn.BatchNorm1d), torch.randn(2, 1, 64)),
    "wavenet": lambda: (WaveNet(), torch.randn(2, 16, 24)),
    "tcn": lambda: (TCN(), torch.randn(2, 3, 20)),
    "conv_lstm": lambda: (ConvLSTMTagger(), torch.randn(2, 5, 9)),
    "attentive_pooling": lambda: (AttentivePooling(), torch.randn(3, 8, 20)),
}
