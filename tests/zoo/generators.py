"""Networks that make images: super-resolution and a generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ESPCN(nn.Module):
    """Sub-pixel super-resolution: the last convolution makes the pixels, a shuffle places them (Shi et al. 2016)."""

    def __init__(self, upscale_factor: int = 3, channels: int = 1) -> None:
        super().__init__()
        self.feature_maps = nn.Sequential(
            nn.Conv2d(channels, 16, 5, padding=2), nn.Tanh(), nn.Conv2d(16, 8, 3, padding=1), nn.Tanh()
        )
        self.sub_pixel = nn.Sequential(
            nn.Conv2d(8, channels * upscale_factor**2, 3, padding=1), nn.PixelShuffle(upscale_factor)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.sub_pixel(self.feature_maps(x))


class EDSRBlock(nn.Module):
    """Residual block without norms, its branch scaled down."""

    def __init__(self, width: int, res_scale: float = 0.5) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(True), nn.Conv2d(width, width, 3, padding=1)
        )
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x).mul(self.res_scale)


class EDSR(nn.Module):
    """Super-resolution with the pixel shuffle in the middle: four channels become one of the next layer's."""

    def __init__(self, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(EDSRBlock(width) for _ in range(blocks)), nn.Conv2d(width, width, 3, padding=1))
        self.tail = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(width, 3, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        res = self.body(x)
        res += x
        return self.tail(res)


class PatchMerging(nn.Module):
    """Space to depth: the four pixels of each 2x2 square become channels, and a linear layer halves them."""

    def __init__(self, width: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.unshuffle = nn.PixelUnshuffle(2)
        self.conv = nn.Conv2d(8 * width, 12, 1)
        self.head = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x)).permute(0, 2, 3, 1)
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        x = self.reduction(self.norm(x)).permute(0, 3, 1, 2)
        x = F.gelu(self.conv(self.unshuffle(x)))
        return self.head(x.mean((2, 3)))


class DCGANGenerator(nn.Module):
    """From a noise vector to an image by transposed convolutions (Radford et al. 2016)."""

    def __init__(self, nz: int = 16, ngf: int = 8, nc: int = 3) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(nz, ngf * 4, 4, 1, 0, bias=False),
            nn.BatchNorm2d(ngf * 4),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 4, ngf * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ngf * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 2, ngf * 2, 4, 2, 1, groups=2, bias=False),
            nn.BatchNorm2d(ngf * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 2, nc, 3, 1, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z)


class ConditionalGenerator(nn.Module):
    """A linear layer makes a feature map, which upsampling and convolutions turn into an image; two inputs."""

    def __init__(self, nz: int = 8, classes: int = 5, width: int = 12, size: int = 4) -> None:
        super().__init__()
        self.init_size = size
        self.label_emb = nn.Embedding(classes, nz)
        self.l1 = nn.Linear(nz, width * size**2)
        self.bn = nn.BatchNorm2d(width)
        self.up = nn.Upsample(scale_factor=2)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width, 0.8)
        self.conv2 = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        out = self.l1(torch.mul(self.label_emb(labels), noise))
        out = out.view(out.shape[0], -1, self.init_size, self.init_size)
        out = self.up(self.bn(out))
        out = F.leaky_relu(self.bn1(self.conv1(out)), 0.2, inplace=True)
        return torch.tanh(self.conv2(out))


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "espcn": lambda: (ESPCN(), torch.randn(2, 1, 8, 8)),
    "edsr": lambda: (EDSR(), torch.randn(2, 3, 8, 8)),
    "patch_merging": lambda: (PatchMerging(), torch.randn(2, 3, 8, 8)),
    "dcgan": lambda: (DCGANGenerator(), torch.randn(2, 16, 1, 1)),
    "conditional_generator": lambda: (ConditionalGenerator(), (torch.randn(2, 8), torch.tensor([1, 4]))),
}
