"""torchvision's compiled operators in plain torch, as far as its detectors need them; slow, and without gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices of boxes ``[n, 4]`` that overlap no box of a higher score, best first."""
    order = scores.argsort(descending=True, stable=True)
    overlapping = _overlaps(boxes) > iou_threshold
    keep: list[int] = []
    for i in order.tolist():
        if not overlapping[i, keep].any():
            keep.append(i)
    return torch.tensor(keep, dtype=torch.long, device=boxes.device)


def _overlaps(boxes: Tensor) -> Tensor:
    """Return intersection over union of all pairs, ``[n, n]``."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return shared / (area[:, None] + area[None, :] - shared)


def roi_align(
    x: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Average samples in the bins of each box: ``x [n, c, h, w]``, ``rois [k, 5]`` -> ``[k, c, height, width]``."""
    if not len(rois):
        return x.new_zeros(0, x.shape[1], height, width)
    return torch.stack([_roi(x, roi, spatial_scale, (height, width), sampling_ratio, aligned) for roi in rois])


def _roi(x: Tensor, roi: Tensor, scale: float, bins: tuple[int, int], samples: int, aligned: bool) -> Tensor:
    image = x[int(roi[0])]
    left, top, right, bottom = (roi[1:] * scale - (0.5 if aligned else 0.0)).tolist()
    least = 0.0 if aligned else 1.0
    rows = _weights(top, max(bottom - top, least), bins[0], samples, x.shape[2], x)
    columns = _weights(left, max(right - left, least), bins[1], samples, x.shape[3], x)
    return torch.einsum("ph,chw,qw->cpq", rows, image, columns)


def _weights(start: float, length: float, bins: int, samples: int, size: int, like: Tensor) -> Tensor:
    """Return how much each pixel along one side adds to each bin, ``[bins, size]``."""
    number = samples if samples > 0 else max(1, -int(-length // bins))
    steps = torch.arange(bins * number, device=like.device, dtype=like.dtype)
    at = start + (steps + 0.5) * (length / (bins * number))
    inside = (at >= -1) & (at <= size)
    at = at.clamp(0, size - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=size - 1)
    share = at - low
    weights = like.new_zeros(bins * number, size)
    rows = steps.long()
    weights.index_put_((rows, low), 1 - share, accumulate=True)
    weights.index_put_((rows, high), share, accumulate=True)
    return (weights * inside[:, None]).view(bins, number, size).mean(1)
