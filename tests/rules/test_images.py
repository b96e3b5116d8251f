"""Squares of the ops that read pixels by place."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tests.rules.harness import Case, square
from tests.torchvision_stub import install

install()


@square("im2col", examples=40)
def test_unfold(case: Case) -> None:
    lead, c, k = case.of((), (2,)), case.size(1, 4), case.of(1, 2, (2, 1))
    shape = (*lead, c, 3, 3)
    pad, stride = case.size(0, 1), case.size(1, 2)
    stays = {f"x:{len(lead) + 1}": "im2col"}
    case.check(lambda m: F.unfold(m.x, k, 1, pad, stride), x=case.tensor(*shape), cut=f"x:{len(lead)}", stays=stays)


@square("col2im", examples=40)
def test_fold(case: Case) -> None:
    lead, c, k = case.of((), (2,)), case.size(1, 4), case.of(1, 2)
    places = (4 - k) ** 2
    x = case.tensor(*lead, c * k * k, places)
    case.check(lambda m: F.fold(m.x, (3, 3), k), x=x, stays={f"x:{len(lead) + 1}": "col2im"})


@square("im2col", "col2im", "conv2d", examples=20)
def test_patches_between_convolutions(case: Case) -> None:
    i, c, o = case.shape(3, 2, 4)

    def run(m: Any, x: Any) -> Any:
        columns = F.unfold(F.conv2d(x, m.a), 2)
        weighted = columns.view(x.shape[0], -1, 4, columns.shape[-1]) * torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None]
        return F.conv2d(F.fold(weighted.flatten(1, 2), (3, 3), 2), m.b)

    a, b = case.tensor(c, i, 1, 1), case.tensor(o, c, 1, 1)
    case.check(run, inputs=(case.tensor(2, i, 3, 3),), a=a, b=b, dress=False, cut="a:0 b:0 b:1")


@square("grid_sampler", "affine_grid_generator", examples=30)
def test_sampling(case: Case) -> None:
    n, c = case.shape(2, 2, 4)
    theta = case.signed(n, 2, 3)

    def sample(m: Any, theta: Any) -> Any:
        places = F.affine_grid(theta, [m.x.shape[0], 1, *m.x.shape[2:]], align_corners=False)
        return F.grid_sample(m.x, places, align_corners=False)

    case.check(sample, inputs=(theta,), x=case.signed(n, c, 3, 4), dress=False, cut="x:1", stays={"x:0": "", "x:2": ""})


@square("grid_sampler", examples=20)
def test_sampling_at_places_that_the_model_computes(case: Case) -> None:
    n, c = case.shape(2, 2, 4)
    x, g = case.signed(n, c, 3, 3), case.signed(n, 2, 2, 2)
    stays = {"g:1": "grid_sampler", "g:3": "grid_sampler", "x:2": "grid_sampler"}
    case.check(lambda m: F.grid_sample(m.x, m.g, align_corners=True), x=x, g=g, cut="x:0 x:1 g:0", stays=stays)


# -- torchvision: its library need not load, so the ops are written in torch here ---------------------


def _deform_conv(
    x: Any, weight: Any, offset: Any, mask: Any, bias: Any, sh: int, sw: int, ph: int, pw: int, dh: int, dw: int,
    groups: int, places: int, use_mask: bool,
) -> Any:  # fmt: skip
    """Sample each tap where its offset says, weigh it by its mask, and multiply by the weight of the tap."""
    n, c, h, w = x.shape
    _, _, kh, kw = weight.shape
    oh, ow = offset.shape[-2:]
    moved = offset.view(n, places, kh * kw, 2, oh, ow)
    rows = torch.arange(oh, dtype=x.dtype)[:, None] * sh - ph
    columns = torch.arange(ow, dtype=x.dtype)[None, :] * sw - pw
    taps = []
    for k in range(kh * kw):
        y = rows + (k // kw) * dh + moved[:, :, k, 0]
        z = columns + (k % kw) * dw + moved[:, :, k, 1]
        grid = torch.stack([2 * z / (w - 1) - 1, 2 * y / (h - 1) - 1], -1).flatten(0, 1)
        tap = F.grid_sample(x.reshape(n * places, c // places, h, w), grid, align_corners=True).view(n, c, oh, ow)
        if use_mask:
            tap = tap * mask.view(n, places, kh * kw, oh, ow)[:, :, k].repeat_interleave(c // places, 1)
        taps.append(F.conv2d(tap, weight[:, :, k // kw, k % kw, None, None], groups=groups))
    return sum(taps) + bias.view(1, -1, 1, 1)


def _roi_align(x: Any, rois: Any, scale: float, ph: int, pw: int, ratio: int, aligned: bool) -> Any:
    """Read each region, given as (image, x1, y1, x2, y2), on a grid of ph x pw points."""
    found = []
    for image, *box in rois.tolist():
        x1, y1, x2, y2 = (value * scale for value in box)
        ys, xs = torch.linspace(y1, y2, ph, dtype=x.dtype), torch.linspace(x1, x2, pw, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)[None]
        found.append(F.grid_sample(x[int(image)][None], grid, align_corners=False)[0])
    return torch.stack(found)


def _roi_pool(x: Any, rois: Any, scale: float, ph: int, pw: int) -> Any:
    pooled = _roi_align(x, rois, scale, ph, pw, 0, False)
    return pooled, pooled.argsort(1)


# The stub has the others.
_IMPLEMENTED = {"deform_conv2d": _deform_conv, "roi_pool": _roi_pool}
_LIBRARY = torch.library.Library("torchvision", "IMPL")
for _name, _function in _IMPLEMENTED.items():
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{_name}", "CPU"):
        _LIBRARY.impl(_name, _function, "CPU")

_VISION = torch.ops.torchvision


@square("torchvision::deform_conv2d", examples=40)
def test_deformable_convolution(case: Case) -> None:
    groups, i, o, k = case.size(1, 2), case.size(1, 3), case.size(1, 3), case.size(1, 2)
    places = case.of(1, 1, groups)
    side = 4 - k + 1
    x, w = case.signed(2, groups * i, 4, 4), case.signed(groups * o, i, k, k)
    offset, bias = case.signed(2, 2 * places * k * k, side, side), case.signed(groups * o)
    use_mask = case.flip()
    mask = case.tensor(2, places * k * k, side, side) if use_mask else torch.zeros(2, 1, dtype=torch.float64)

    def run(m: Any) -> Any:
        return _VISION.deform_conv2d(
            m.x, m.w, m.offset, m.mask, m.bias, 1, 1, 0, 0, 1, 1, m.groups, places, use_mask
        )  # fmt: skip

    cut = "x:1 w:0 w:1 bias:0" if groups == 1 else ""
    stays = {"offset:1": "torchvision::deform_conv2d", "x:2": "torchvision::deform_conv2d"}
    case.check(run, x=x, w=w, offset=offset, mask=mask, bias=bias, groups=groups, dress=("x",), cut=cut, stays=stays)


@square("torchvision::roi_align", "torchvision::roi_pool", examples=30)
def test_regions(case: Case) -> None:
    n, c = case.shape(2, 2, 4)
    rois = torch.tensor([[0, 0.1, 0.1, 0.8, 0.9], [1, 0.2, 0, 0.5, 0.5], [0, 0, 0, 0.3, 0.4]], dtype=torch.float64)
    op = case.of(
        lambda x, rois: _VISION.roi_align(x, rois, 1.0, 2, 2, 1, False),
        lambda x, rois: _VISION.roi_pool(x, rois, 1.0, 2, 2)[0],
    )
    stays = {"x:0": "roi_", "x:2": "roi_"}
    case.check(lambda m, rois: op(m.x, rois), inputs=(rois,), x=case.signed(n, c, 4, 4), cut="x:1", stays=stays)


@square("torchvision::nms", must_cut=False, examples=6)
def test_suppression(case: Case) -> None:
    stays = {"x:0": "nms", "s:0": "nms"}
    case.check(lambda m: _VISION.nms(m.x, m.s, 0.5), x=case.tensor(4, 4), s=case.tensor(4), dress=False, stays=stays)
