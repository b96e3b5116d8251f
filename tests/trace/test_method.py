"""Another entry than ``forward``: what it does not use stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import TraceError


class AutoEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.hidden, self.leave = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 6)

    def encode(self, x: Tensor) -> Tensor:
        return self.hidden(self.enter(x).relu())

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.encode(x))

    def score(self, x: Tensor) -> Tensor:
        return (self(x) - x).square().mean(-1)


X = torch.randn(3, 6)


def test_the_output_of_the_method_stays() -> None:
    model = AutoEncoder().eval()
    result = surgeon.prune(model, X, ratio=0.5, method="encode")
    assert result.model.enter.out_features == 8 and result.model.hidden.out_features == 8
    assert result.proof is not None and result.plan.method == "encode"
    assert result.model(X).shape == (3, 6) and result.model.encode(X).shape == (3, 8)
    assert "forward" not in vars(model) and "forward" not in vars(result.model)
    assert result.report.before.flops == 3 * (6 * 16 + 16 * 8)


def test_a_method_that_calls_forward() -> None:
    result = surgeon.prune(AutoEncoder().eval(), X, ratio=0.5, scope="local", method="score")
    assert result.model.hidden.out_features == 4


def test_a_forward_of_the_instance_is_called_and_stays() -> None:
    model = AutoEncoder().eval()
    calls = []

    def forward(x: Tensor) -> Tensor:
        calls.append(x)
        return type(model).forward(model, x)

    model.forward = forward
    graph = surgeon.trace(model, X, method="score")
    assert calls and model.forward is forward
    assert [group.name for group in graph.free] == ["enter", "hidden"]
    surgeon.trace(model, X, method="encode")
    assert model.forward is forward


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(TraceError, match="no method 'encodes'; it has encode"):
        surgeon.trace(AutoEncoder(), X, method="encodes")
