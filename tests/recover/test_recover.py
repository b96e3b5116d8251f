"""Compensation in general: better on data not seen, never worse on held-out rows, clear about bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import DataError, PlanMismatch, RecoverError
from surgeon.recover.problem import Problem, Rows, Weights
from tests.nets import Perceptron, Residual


def correlated(samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Images that are smooth, so that neighbouring channels have much in common."""
    coarse = torch.randn(samples, 3, 3, 3, generator=generator)
    return nn.functional.interpolate(coarse, size=8, mode="bilinear", align_corners=False)


def halves(model: nn.Module, x: Tensor) -> tuple[nn.Module, surgeon.Plan]:
    graph = surgeon.trace(model, x)
    plan = surgeon.plan(graph, surgeon.score(graph, "l1"), ratio=0.4, scope="local")
    return surgeon.operate(model, plan), plan


def error(model: nn.Module, small: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        wanted = model(x)
        return float((small(x) - wanted).square().mean() / wanted.var())


def test_ridge_is_better_on_new_data() -> None:
    model = Residual().eval()
    small, plan = halves(model, correlated(2))
    before = error(model, small, correlated(50))
    recovery = surgeon.recover(model, small, plan, [correlated(32), correlated(32)])
    assert error(model, small, correlated(50)) < 0.5 * before
    assert recovery.samples == 64
    assert all(layer.after <= layer.before for layer in recovery.layers)
    assert str(recovery).startswith("ridge: ")


def test_a_layer_that_sees_constants_gets_an_offset_only() -> None:
    model = Perceptron(hidden=12).eval()
    x = torch.randn(64, 6)
    small, plan = halves(model, x)
    small.first.weight.data.zero_()
    weight = small.last.weight.detach().clone()
    recovery = surgeon.recover(model, small, plan, [x])
    assert recovery.layers[0].taken
    assert torch.allclose(small.last.weight, weight, atol=1e-4)


def together(a: Rows, b: Rows) -> Rows:
    return Rows(torch.cat([a.x, b.x], 1), torch.cat([a.t, b.t]), torch.cat([a.rest, b.rest]))


def test_a_refit_that_is_not_better_is_not_taken() -> None:
    """The old weights are right; what is fitted is noise, and held-out rows tell."""
    right = torch.randn(1, 3, 4, dtype=torch.float64)
    x = torch.randn(1, 60, 4, dtype=torch.float64)
    rows = [Rows(part, (part @ right.mT)[0], torch.zeros(30, 3, dtype=torch.float64)) for part in x.split(30, 1)]
    noisy = Rows(rows[0].x, 5 * torch.randn(30, 3, dtype=torch.float64), rows[0].rest)
    old = Weights(right, torch.zeros(1, 3, dtype=torch.float64))
    ones, zeros = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    assert Problem(old, together(noisy, rows[1]), 30, ones, zeros, relu=False).best() is old
    wrong = Weights(right + 1, old.offset)
    found = Problem(wrong, together(*rows), 30, ones, zeros, relu=False).best()
    assert torch.allclose(found.weight, right, atol=1e-6)


def test_behind_a_relu_only_what_passes_has_to_be_right() -> None:
    """Two of three inputs are left: there is no exact fit before the ReLU, and a better one behind it."""
    x = torch.randn(1, 4000, 3, dtype=torch.float64)
    t = (x @ torch.tensor([[1.0, 1.0, 0.7]], dtype=torch.float64).mT)[0] - 1
    rest = torch.zeros(2000, 1, dtype=torch.float64)
    rows = [Rows(a[:, :, :2], b, rest) for a, b in zip(x.split(2000, 1), t.split(2000))]
    old = Weights(torch.zeros(1, 1, 2, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    one = torch.ones(1, dtype=torch.float64)
    plain = Problem(old, together(*rows), 2000, one, 0 * one, relu=False).best()
    problem = Problem(old, together(*rows), 2000, one, 0 * one, relu=True)
    assert problem.best().rounds > 0
    assert problem.error(problem.best()) < 0.99 * problem.error(plain)


def test_the_original_and_untouched_layers_stay_as_they_are() -> None:
    model = Residual().eval()
    state = copy.deepcopy(model.state_dict())
    x = correlated(16)
    graph = surgeon.trace(model, x)
    plan = surgeon.plan(graph, surgeon.score(graph, "l1"), ratio=0.4, scope="local", groups={"stem": 0.0})
    small = surgeon.operate(model, plan)
    recovery = surgeon.recover(model, small, plan, [x])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(small.stem.weight, model.stem.weight)
    # What makes the channels sees what it saw; what reads them, and what comes after, is refitted.
    assert [layer.layer for layer in recovery.layers] == ["conv2", "head"]
    assert not small.training


def test_more_channels_than_positions_fall_back_on_the_penalty() -> None:
    """Ten rows for 60 unknowns: the system is singular without the penalty, and the fit is still no worse."""
    model = Perceptron(width=6, hidden=60).double().eval()
    x = torch.randn(10, 6, dtype=torch.float64)
    small, plan = halves(model, x)
    before = error(model, small, x)
    recovery = surgeon.recover(model, small, plan, [x])
    assert torch.isfinite(small.last.weight).all()
    assert error(model, small, x) <= before
    assert recovery.layers[0].rows < recovery.layers[0].unknowns


def test_over_the_memory_cap_only_means_are_met() -> None:
    model = Perceptron(hidden=40).double().eval()
    x = torch.randn(64, 6, dtype=torch.float64)
    small, plan = halves(model, x)
    weight = small.last.weight.detach().clone()
    recovery = surgeon.recover(model, small, plan, [x], memory=4000)
    assert "memory cap" in recovery.layers[0].note
    assert torch.equal(small.last.weight, weight)
    assert not torch.equal(small.last.bias, model.last.bias)


@pytest.mark.parametrize(
    "data, message",
    [
        ([], "no batch"),
        ([torch.full((8, 3, 8, 8), float("nan"))], "not finite"),
        ([torch.randn(1, 3, 8, 8)], "too few"),
        (5, "pass batches"),
        ([()], "empty"),
        (["text"], "no tensor"),
    ],
)
def test_bad_data_is_named(data: object, message: str) -> None:
    model = Residual().eval()
    small, plan = halves(model, correlated(2))
    with pytest.raises(DataError, match=message):
        surgeon.recover(model, small, plan, data)


def test_methods_are_checked() -> None:
    model = Residual().eval()
    small, plan = halves(model, correlated(2))
    with pytest.raises(RecoverError, match="'magic'"):
        surgeon.recover(model, small, plan, [correlated(4)], method="magic")
    with pytest.raises(RecoverError, match="'magic'"):
        surgeon.prune(model, correlated(2), ratio=0.4, compensate="magic")
    with pytest.raises(DataError, match="needs data"):
        surgeon.recover(model, small, plan, method="ridge")
    with pytest.raises(DataError, match="example_inputs"):
        surgeon.recover(model, small, plan)


def test_models_and_plan_belong_together() -> None:
    model = Residual().eval()
    small, plan = halves(model, correlated(2))
    for pair in ((small, model), (model, model), (small, small)):
        with pytest.raises(PlanMismatch, match="original first"):
            surgeon.recover(*pair, plan, [correlated(4)])


def test_prune_with_data_beats_prune_without() -> None:
    model = Residual(inner=24).eval()
    data = [correlated(32) for _ in range(4)]
    plain = surgeon.prune(model, data[0][:2], flops=0.6)
    best = surgeon.prune(model, data[0][:2], flops=0.6, data=((batch, torch.zeros(32)) for batch in data))
    assert best.recovery is not None and plain.recovery is None
    assert best.proof is not None and best.proof.difference < 1e-9
    assert best.plan.totals["flops"][1] <= 0.6 * best.plan.totals["flops"][0]
    assert error(model, best.model, correlated(50)) < 0.3 * error(model, plain.model, correlated(50))


def test_batches_of_other_sizes_and_dictionaries() -> None:
    class Named(Perceptron):
        def forward(self, *, x: Tensor) -> Tensor:
            return super().forward(x)

    model = Named(hidden=20).eval()
    graph = surgeon.trace(model, {"x": torch.randn(2, 6)})
    plan = surgeon.plan(graph, surgeon.score(graph, "l1"), ratio=0.5)
    small = surgeon.operate(model, plan)
    recovery = surgeon.recover(model, small, plan, [{"x": torch.randn(n, 6)} for n in (5, 40, 19)])
    assert recovery.samples == 64 and recovery.layers[0].taken


def test_few_samples_are_no_licence() -> None:
    """What is recorded as left has its old weights, and what is recorded as taken is better on samples held out."""
    generator = torch.Generator().manual_seed(3)
    left = 0
    for _ in range(12):
        model = Perceptron(width=6, hidden=16).double().eval()
        x = torch.randn(5, 6, dtype=torch.float64, generator=generator)
        small, plan = halves(model, x)
        weight, bias = small.last.weight.detach().clone(), small.last.bias.detach().clone()
        (layer,) = surgeon.recover(model, small, plan, [x]).layers
        assert layer.taken == (not torch.equal(small.last.weight, weight) or not torch.equal(small.last.bias, bias))
        left += not layer.taken
        held = x[3:4]
        with torch.no_grad():
            before = (torch.relu(small.first(held)) @ weight.T + bias - model(held)).square().mean()
        assert layer.taken == (layer.after < layer.before) and (layer.before > 0) == bool(before > 0)
    assert 0 < left < 12
