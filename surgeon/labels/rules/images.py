"""Ops that read pixels by place: patches as columns, sampling grids, regions of interest, deformable convolution."""

from __future__ import annotations

from math import prod
from typing import Any

from surgeon.labels.family import Value, make_solid, move, project
from surgeon.labels.flow import Flow, Rule
from surgeon.labels.notation import parse
from surgeon.labels.rules.contraction import run_line
from surgeon.labels.rules.movement import stacked
from surgeon.trace import Call

_DEFORMED = (
    "input[n (g i) *] weight[(g o) i *] offset[n *] mask[n *] bias[(g o)] stride_h stride_w pad_h pad_w "
    "dilation_h dilation_w groups=g -> n (g o) *"
)


def unfold(flow: Flow, call: Call) -> None:
    """im2col(input [n, c, h, w], kernel_size) -> [n, (c k), l]: every channel becomes k channels that live with it."""
    tensor = call.args[0]
    taps = prod(int(size) for size in _pair(call.argument(1, "kernel_size")))
    flow.solid(tensor, [-1, -2], f"{call.name} reads pixels as a whole")
    rank = tensor.dim()
    value = Value(tuple(tensor.shape), _apart_from_pixels(flow, tensor, rank - 2))

    def columns(labels: Any) -> Any:
        return labels.select(-1, 0).select(-1, 0).repeat_interleave(taps, rank - 3).unsqueeze(-1)

    flow.set(call.result, move(flow.space, value, columns))


def fold(flow: Flow, call: Call) -> None:
    """col2im(input [n, (c k), l], output_size, kernel_size) -> [n, c, h, w]: a channel goes with all of its taps."""
    tensor = call.args[0]
    dim, taps = tensor.dim() - 2, prod(int(size) for size in _pair(call.argument(2, "kernel_size")))
    flow.solid(tensor, [-1], f"{call.name} adds up patches")
    value = Value(tuple(tensor.shape), _apart_from_pixels(flow, tensor, dim + 1))
    apart = stacked(flow, value, dim, tensor.shape[dim] // taps)
    make_solid(flow.space, apart, dim + 1, f"{call.name} needs all taps of a channel")
    moved = move(flow.space, apart, lambda labels: labels.select(dim + 1, 0).unsqueeze(-1))
    flow.set(call.result, moved)


def _pair(size: Any) -> tuple[Any, ...]:
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)


def _apart_from_pixels(flow: Flow, tensor: Any, lead: int) -> list[Any]:
    """Return what is known about the leading dimensions alone; the same for every pixel."""
    families = flow.value(tensor).families
    return [f for family in families if (f := project(flow.space, family, range(lead))) is not None]


def grid(flow: Flow, call: Call) -> None:
    """affine_grid_generator(theta [n, d, d + 1], size): places in an image of a given size, whatever its channels."""
    theta, size = call.args[:2]
    flow.solid(theta, range(theta.dim()), f"{call.name} computes places")
    for dim, given in enumerate(size):
        if dim != 1:
            flow.size(given, int(given), f"size {dim} of {call.name}")
    flow.set(call.result, [])


def regions(flow: Flow, call: Call) -> None:
    """roi_align(input [n, c, h, w], rois [k, 5]) -> [k, c, ph, pw]: channels pass, images and pixels are looked up."""
    tensor, boxes = call.args[:2]
    flow.solid(tensor, [0, 2, 3], f"{call.name} looks up regions")
    flow.solid(boxes, [0, 1], f"{call.name} looks up regions")
    left = [f for family in flow.value(tensor).families if (f := project(flow.space, family, [1])) is not None]
    for result in call.results:
        flow.set(result, list(left))


def deform_conv(flow: Flow, call: Call) -> None:
    """deform_conv2d(input, weight, offset, mask, bias, ..., groups, offset_groups, use_mask): a convolution."""
    tensor, places = call.args[0], int(call.args[12])
    if places > 1:
        flow.solid(tensor, [1], f"{call.name} moves channels in {places} groups")
    flow.solid(call.args[2], [1], f"{call.name} reads offsets by place")
    if call.args[3].dim() > 1:
        flow.solid(call.args[3], [1], f"{call.name} reads offsets by place")
    run_line(flow, call, parse(_DEFORMED))


def boxes(flow: Flow, call: Call) -> None:
    """nms(boxes, scores): which boxes are left depends on all of them."""
    for tensor in call.args[:2]:
        flow.solid(tensor, range(tensor.dim()), f"{call.name} compares boxes")
    flow.set(call.result, [])


RULES: dict[str, Rule] = {
    "im2col": unfold,
    "col2im": fold,
    "affine_grid_generator": grid,
    "torchvision::roi_align": regions,
    "torchvision::roi_pool": regions,
    "torchvision::deform_conv2d": deform_conv,
    "torchvision::nms": boxes,
}
