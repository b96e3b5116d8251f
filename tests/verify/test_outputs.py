"""Outputs of which there may be none, or another number after the cut, as detectors have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgeon


class Found(nn.Module):
    """Returns the results above a threshold, of which there may be none, [n, 3, h, w] -> [k]."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.second(self.first(x).relu()).flatten()
        return scores.sort().values[: int((scores > self.threshold).sum())]


def test_no_results_on_the_example_are_proved_on_other_weights() -> None:
    torch.manual_seed(0)
    model, x = Found(threshold=1.0), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        model.second.bias.fill_(-1.0)
    assert not len(model(x))
    proof = surgeon.prune(model, x, ratio=0.5).proof
    assert proof is not None and "perturbed weights" in str(proof)


def test_the_number_of_results_may_depend_on_what_is_cut() -> None:
    torch.manual_seed(0)
    model, x = Found(threshold=0.0), torch.randn(1, 3, 8, 8)
    result = surgeon.prune(model, x, ratio=0.5)
    assert len(model(x)) != len(result.model(x)) > 0
    assert result.proof is not None and "perturbed" not in str(result.proof)


def test_nothing_is_proved_by_no_results_at_all() -> None:
    torch.manual_seed(0)
    with pytest.raises(surgeon.SurgeonError, match="the outputs are empty on the example inputs"):
        surgeon.prune(Found(threshold=float("inf")), torch.randn(1, 3, 8, 8), ratio=0.5)
