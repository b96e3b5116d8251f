"""Noise in place of data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Amplitudes of natural images fall about as the frequency rises; a steeper fall leaves larger shapes.
FALL = 1.5
# How much of an image's noise its channels share.
SHARED = 0.76


def noise(example_inputs: Any, samples: int, batch: int = 64, seed: int = 0) -> list[Any]:
    """Return batches of noise in the form of example inputs; integers and flags are repeated.

    Tensors ``[n, c, h, w]`` become images of mean zero and variance one whose spectrum falls with the frequency, as
    that of photographs does (Field, 1987, "Relations between the statistics of natural images"), and whose channels
    mostly agree. Others become independent normal numbers.
    """
    draw = torch.Generator().manual_seed(seed)
    return [_like(example_inputs, min(batch, samples - at), draw) for at in range(0, samples, batch)]


def _like(tree: Any, many: int, draw: torch.Generator) -> Any:
    if isinstance(tree, dict):
        return {key: _like(item, many, draw) for key, item in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(_like(item, many, draw) for item in tree)
    if not isinstance(tree, Tensor) or not tree.dim():
        return tree
    if not tree.is_floating_point():
        return tree.repeat_interleave(-(-many // len(tree)), 0)[:many]
    if tree.dim() == 4 and min(tree.shape[2:]) > 1:
        return _images((many, *tree.shape[1:]), draw).to(tree)
    return torch.randn(many, *tree.shape[1:], generator=draw).to(tree)


def _images(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    n, c, h, w = shape
    frequency = (torch.fft.fftfreq(h).square().unsqueeze(1) + torch.fft.fftfreq(w).square()).sqrt()
    frequency[0, 0] = 1 / max(h, w)
    common, own = torch.randn(n, 1, h, w, generator=draw), torch.randn(n, c, h, w, generator=draw)
    white = SHARED**0.5 * common + (1 - SHARED) ** 0.5 * own
    images = torch.fft.ifft2(torch.fft.fft2(white) / frequency**FALL).real
    return images / images.std()
