"""The plain operators agree with torchvision's own slow path, which is there for other devices."""

from __future__ import annotations

import importlib

import pytest
import torch
from torchvision.ops import nms, roi_align

from tests import torchvision_ops

# the function that ``torchvision.ops.roi_align`` hands over to, before it is compiled
SLOW = importlib.import_module("torchvision.ops.roi_align")._roi_align.__wrapped__


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("samples", [0, 2])
def test_roi_align(aligned: bool, samples: int) -> None:
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    boxes = [[0, 1, 2, 7, 8], [0, 3, 3, 3.2, 3.1], [1, 0.3, 2.2, 8.8, 7.7]]
    rois = torch.tensor(boxes, dtype=torch.float64)
    expected = SLOW(x, rois, 0.7, 3, 4, samples, aligned)
    assert torch.allclose(torchvision_ops.roi_align(x, rois, 0.7, 3, 4, samples, aligned), expected)
    assert torch.allclose(roi_align(x, rois, (3, 4), 0.7, samples, aligned), expected)


def test_nms_drops_what_overlaps_a_better_box() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2.1], [5, 5, 6, 6]])
    scores = torch.tensor([0.1, 0.3, 0.2])
    assert torchvision_ops.nms(boxes, scores, 0.5).tolist() == [1, 2]
    assert nms(boxes, scores, 0.99).tolist() == [1, 2, 0]
