"""Means and variances that norms tell, against samples and against integrals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

import surgeon
from surgeon.calibrate import Slot, Step, contractions, record
from surgeon.recover.gaussian import moments_of, normals, relu6
from tests.nets import Residual
from tests.recover.test_recover import correlated, error, halves

ACTIVATIONS = ("relu", "relu6", "silu", "gelu", "hardswish", "sigmoid", "tanh", "leaky_relu")


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("mean, deviation", [(0.3, 1.2), (-2.0, 0.5), (5.0, 2.0), (0.4, 1e-9)])
def test_moments_of_activations(name: str, mean: float, deviation: float) -> None:
    function = getattr(torch if name in ("sigmoid", "tanh") else nn.functional, name)

    def integral(power: int) -> float:
        def density(u: float) -> float:
            value = float(function(torch.tensor(mean + deviation * u, dtype=torch.float64)))
            return value**power * np.exp(-u * u / 2) / np.sqrt(2 * np.pi)

        kinks = [(k - mean) / deviation for k in (-3, 0, 3, 6) if abs(k - mean) < 9 * deviation]
        return quad(density, -10, 10, points=kinks or None, limit=200)[0]

    moments = moments_of(Step(name, function, (Slot(0),), {}, ()))
    assert moments is not None
    first, second = moments(*(torch.tensor([v], dtype=torch.float64) for v in (mean, deviation**2)))
    # Kinks cost the quadrature some digits; ReLU and ReLU6 are exact.
    close = 1e-9 if name in ("relu", "relu6") else 1e-2 if name in ("hardswish", "leaky_relu") else 1e-5
    assert float(first) == pytest.approx(integral(1), rel=close, abs=close)
    assert float(second) == pytest.approx(integral(2), rel=close, abs=close)


def test_relu6_is_cut_off_at_both_ends() -> None:
    mean, second = relu6(torch.tensor([9.0]).double(), torch.tensor([0.01]).double())
    assert float(mean) == pytest.approx(6) and float(second) == pytest.approx(36)


def test_values_follow_from_norms() -> None:
    """Normal and independent inputs to a norm make it exact: what samples give is what is computed."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(5, 2),
    )  # fmt: skip
    model[0].weight.data.zero_()
    for c in range(3):
        model[0].weight.data[c, c] = 1.0
    for value in (model[1].weight, model[1].bias):
        value.data.uniform_(0.5, 1.5)
    model = model.double().eval()
    x = torch.randn(4000, 3, 2, 2, dtype=torch.float64)
    model[0].bias.data.zero_()
    model[1].running_var[3:] = 1e12  # channels that are constant get no variance from the norm's weight
    model[1].weight.data[3:] = 0
    tape = record(model, x[:2])
    known = normals(tape)
    layers = {str(layer.weight): layer for layer in contractions(tape)}
    for name, depth, close in (("3.weight", 3, 0.05), ("7.weight", 7, 0.1)):
        given = model[:depth](x).detach()
        given = given.transpose(0, 1).reshape(given.shape[1], -1)
        assert torch.allclose(known[layers[name].x].mean, given.mean(1), rtol=close, atol=close)
    spread = model[:3](x).detach().transpose(0, 1).reshape(8, -1).var(1)
    assert torch.allclose(known[layers["3.weight"].x].var, spread, rtol=0.05, atol=1e-6)


@pytest.mark.parametrize("method", ["merge", "noise"])
def test_without_data_it_is_still_better(method: str) -> None:
    model = Residual(inner=24)
    model.bn1.bias.data.uniform_(0.5, 1.5)
    model.train()
    for _ in range(30):
        model(correlated(32))
    model.eval()
    graph = surgeon.trace(model, correlated(2))
    # What a norm tells is told of the channels inside the block only.
    plan = surgeon.plan(graph, surgeon.score(graph, "l1"), ratio=0.5, scope="local", groups={"stem": 0.0})
    small = surgeon.operate(model, plan)
    before = error(model, small, correlated(50))
    recovery = surgeon.recover(model, small, plan, method=method, example_inputs=correlated(2))
    assert error(model, small, correlated(50)) < 0.8 * before
    assert any(layer.taken for layer in recovery.layers) and str(recovery)


def test_statistics_of_norms_are_kept_only_if_they_help() -> None:
    model = Residual(inner=24).eval()
    model.bn1.running_mean.uniform_(-1, 1)
    small, plan = halves(model, correlated(2))
    mean = small.bn1.running_mean.clone()
    (found,) = surgeon.recover(model, small, plan, [correlated(16)] * 2, method="norms").layers
    assert found.taken == (not torch.equal(small.bn1.running_mean, mean))
    assert small.bn1.momentum == model.bn1.momentum and not small.bn1.training
    assert small.bn1.num_batches_tracked == model.bn1.num_batches_tracked
