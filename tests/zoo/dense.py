"""Networks with one answer per pixel or voxel: U-Nets in two and three dimensions, masked convolutions, diffusion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def double_conv(inp: int, out: int) -> nn.Sequential:
    """Twice convolution, batch norm, activation."""
    return nn.Sequential(
        nn.Conv2d(inp, out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
        nn.Conv2d(out, out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    )


class Up(nn.Module):
    """Enlarge, pad to the size of the skip, concatenate, convolve."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inp, inp // 2, 2, stride=2)
        self.conv = double_conv(inp, out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        dy = skip.size()[2] - x.size()[2]
        dx = skip.size()[3] - x.size()[3]
        x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.conv(torch.cat([skip, x], dim=1))


class UNet2d(nn.Module):
    """U-Net of three levels (Ronneberger et al. 2015)."""

    def __init__(self, n_channels: int = 3, n_classes: int = 2, width: int = 8) -> None:
        super().__init__()
        self.inc = double_conv(n_channels, width)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), double_conv(width, 2 * width))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), double_conv(2 * width, 4 * width))
        self.up1 = Up(4 * width, 2 * width)
        self.up2 = Up(2 * width, width)
        self.outc = nn.Conv2d(width, n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x = self.up1(x3, x2)
        x = self.up2(x, x1)
        return self.outc(x)


class UNet3d(nn.Module):
    """nnU-Net-like: strided 3-D convolutions, instance norm, leaky activations, an auxiliary output below the top."""

    def __init__(self, inp: int = 1, n_classes: int = 3, width: int = 6) -> None:
        super().__init__()
        self.enc1 = self._block(inp, width)
        self.enc2 = self._block(width, 2 * width, stride=2)
        self.bottom = self._block(2 * width, 4 * width, stride=2)
        self.up2 = nn.ConvTranspose3d(4 * width, 2 * width, 2, 2)
        self.dec2 = self._block(4 * width, 2 * width)
        self.reduce = nn.Conv3d(2 * width, width, 1)
        self.dec1 = self._block(2 * width, width)
        self.seg = nn.ModuleList([nn.Conv3d(width, n_classes, 1), nn.Conv3d(2 * width, n_classes, 1)])

    @staticmethod
    def _block(inp: int, out: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv3d(inp, out, 3, stride, 1), nn.InstanceNorm3d(out, affine=True), nn.LeakyReLU(0.01, inplace=True)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s1 = self.enc1(x)
        s2 = self.enc2(s1)
        x = self.up2(self.bottom(s2))
        d2 = self.dec2(torch.cat((x, s2), 1))
        x = F.interpolate(self.reduce(d2), scale_factor=2, mode="trilinear", align_corners=False)
        d1 = self.dec1(torch.cat((x, s1), 1))
        return self.seg[0](d1), self.seg[1](d2)


class MaskedConvs(nn.Module):
    """Inpainting: after every convolution the features are multiplied by a mask of one channel."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        x = F.elu(self.conv1(torch.cat([image * mask, mask], dim=1))) * mask
        small = F.max_pool2d(mask, 2)
        x = F.elu(self.conv2(x)) * small
        x = F.elu(self.conv3(x)).masked_fill(small == 0, 0.0)
        x = F.interpolate(x, size=image.shape[-2:], mode="nearest")
        return mask * image + (1 - mask) * self.out(x)


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sines and cosines of the time step, ``[n] -> [n, dim]``."""
    half = dim // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    args = t[:, None] * freqs[None].to(t)
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


class TimeResBlock(nn.Module):
    """Group norm, activation, convolution; the time embedding scales and shifts in between."""

    def __init__(self, inp: int, out: int, emb: int, groups: int = 4) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, inp), nn.SiLU(), nn.Conv2d(inp, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * out))
        self.out_norm = nn.GroupNorm(groups, out)
        self.out_layers = nn.Sequential(nn.SiLU(), nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Identity() if inp == out else nn.Conv2d(inp, out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        scale, shift = self.emb_layers(emb)[..., None, None].chunk(2, dim=1)
        h = self.out_norm(h) * (1 + scale) + shift
        return self.skip(x) + self.out_layers(h)


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, with q, k and v from one 1x1 convolution."""

    def __init__(self, channels: int, heads: int = 2, groups: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, *spatial = x.shape
        x = x.reshape(b, c, -1)
        qkv = self.qkv(self.norm(x))
        q, k, v = qkv.reshape(b * self.heads, -1, qkv.shape[2]).chunk(3, dim=1)
        scale = 1 / math.sqrt(math.sqrt(q.shape[1]))
        weight = torch.softmax(torch.einsum("bct,bcs->bts", q * scale, k * scale), dim=-1)
        h = torch.einsum("bts,bcs->bct", weight, v).reshape(b, -1, x.shape[-1])
        return (x + self.proj(h)).reshape(b, c, *spatial)


class DiffusionUNet(nn.Module):
    """Noise predictor with a stack of skips that the way up pops and concatenates (Ho et al. 2020)."""

    def __init__(self, inp: int = 3, width: int = 16, attention: bool = True) -> None:
        super().__init__()
        emb = 2 * width
        self.width = width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.stem = nn.Conv2d(inp, width, 3, padding=1)
        self.down = nn.ModuleList([TimeResBlock(width, width, emb), TimeResBlock(width, 2 * width, emb)])
        self.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.middle = TimeResBlock(2 * width, 2 * width, emb)
        self.attention = AttentionBlock(2 * width) if attention else nn.Identity()
        self.up = nn.ModuleList([TimeResBlock(4 * width, width, emb), TimeResBlock(2 * width, width, emb)])
        self.upsample = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(4, 2 * width), nn.SiLU(), nn.Conv2d(2 * width, inp, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = self.time_embed(timestep_embedding(t, self.width).to(x.dtype))
        h = self.stem(x)
        hs = [h]
        h = self.down[0](h, emb)
        hs.append(h)
        h = self.down[1](self.downsample(h), emb)
        hs.append(h)
        h = self.attention(self.middle(h, emb))
        h = self.up[0](torch.cat([h, hs.pop()], dim=1), emb)
        h = self.upsample(F.interpolate(h, scale_factor=2, mode="nearest"))
        h = self.up[1](torch.cat([h, hs.pop()], dim=1), emb)
        return self.out(torch.cat([h, hs.pop()], dim=1))


def _mask(size: int) -> Tensor:
    return (torch.rand(2, 1, size, size) > 0.3).float()


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "unet2d": lambda: (UNet2d(), torch.randn(2, 3, 18, 18)),
    "unet3d": lambda: (UNet3d(), torch.randn(1, 1, 8, 8, 8)),
    "masked_convs": lambda: (MaskedConvs(), (torch.randn(2, 3, 12, 12), _mask(12))),
    "diffusion_unet": lambda: (DiffusionUNet(), (torch.randn(2, 3, 8, 8), torch.tensor([3.0, 71.0]))),
    "diffusion_unet_conv": lambda: (
        DiffusionUNet(attention=False),
        (torch.randn(2, 3, 8, 8), torch.tensor([3.0, 71.0])),
    ),
}
