"""Plans: files, ratios, budgets, multiples, floors."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import surgeon
from surgeon.errors import BudgetError, InfeasibleBudget, NothingPrunable, PlanMismatch, ScoreError, UnknownLayer
from surgeon.plan import cost
from surgeon.plan.ladders import kind
from surgeon.plan.runs import decode, encode
from tests.nets import Residual, image
from tests.zoo import MODELS, build

indices = st.sets(st.integers(0, 60)).map(lambda s: np.array(sorted(s), dtype=np.int64))


@given(indices)
def test_runs_round_trip(kept: np.ndarray) -> None:
    assert np.array_equal(decode(encode(kept), 61), kept)


@pytest.mark.parametrize(
    "text", ["3-1", "1,1", "5,2", "0-61", "-1", "a", "1-", "1--2", "1e9", " 1", "999999999999999999999"]
)
def test_malformed_runs_are_refused(text: str) -> None:
    with pytest.raises(PlanMismatch):
        decode(text, 61)


@pytest.mark.parametrize(
    "name", ["resnet20_pad", "resnext", "two_groupings", "unet"] if "unet" in MODELS else list(MODELS)[:6]
)
def test_json_round_trip_replays_on_another_checkpoint(name: str) -> None:
    model, inputs = build(name)
    graph = surgeon.trace(model, inputs)
    plan = surgeon.plan(graph, surgeon.score(graph), ratio=0.5, scope="local")
    again = surgeon.Plan.from_json(plan.to_json())
    assert again == plan and again.to_json() == plan.to_json()
    other, _ = build(name, seed=1)
    surgeon.verify(other, surgeon.operate(other, again), again, inputs)


def edited(change: Any) -> str:
    plan = surgeon.prune(Residual(), image(), ratio=0.5, scope="local").plan
    data = json.loads(plan.to_json())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(version=99),
        lambda d: d.pop("format"),
        lambda d: d.pop("cuts"),
        lambda d: d["cuts"]["conv1.weight"].update(new_shape=[0, 8, 3, 3]),
        lambda d: d["cuts"]["conv1.weight"].update(new_shape=[60, 8, 3, 3]),
        lambda d: d["cuts"]["conv1.weight"]["keep"][0].update(dims=[7]),
        lambda d: d["cuts"]["conv1.weight"]["keep"][0].update(of=10**12),
        lambda d: d["cuts"]["conv1.weight"]["keep"][0].update(keep="0-999999"),
        lambda d: d["attributes"][0].update(shell="rm"),
    ],
)
def test_malformed_plans_are_refused(change: Any) -> None:
    with pytest.raises(PlanMismatch):
        surgeon.Plan.from_json(edited(change))
    with pytest.raises(PlanMismatch):
        surgeon.Plan.from_json("{")


def planned(model: Any = None, **options: Any) -> surgeon.Plan:
    model = model or Residual(width=32, inner=48)
    graph = surgeon.trace(model, image())
    return surgeon.plan(graph, surgeon.score(graph), **options)


def left(plan: surgeon.Plan) -> dict[str, int]:
    return {g.name: g.size - g.removed for g in plan.groups}


def test_local_ratio_cuts_every_group_alike() -> None:
    assert left(planned(ratio=0.5, scope="local")) == {"stem": 16, "conv1": 24}


@given(st.floats(0.05, 0.85))
def test_global_ratio_cuts_the_share_asked(ratio: float) -> None:
    plan = planned(ratio=ratio, floor=0)
    assert 80 - sum(left(plan).values()) == pytest.approx(ratio * 80, abs=1)


def test_multiples_floors_and_limits() -> None:
    assert all(n % 8 == 0 for n in left(planned(flops=0.4, round_to=8)).values())
    assert left(planned(ratio=0.9, scope="local", floor=0.25)) == {"stem": 8, "conv1": 12}
    assert left(planned(ratio=0.5, scope="local", groups={"conv1": 0.1})) == {"stem": 16, "conv1": 44}


def test_rounding_never_deletes_a_layer() -> None:
    plan = planned(Residual(width=8, inner=64), ratio=0.5, scope="local", round_to=16)
    assert left(plan) == {"stem": 8, "conv1": 32}


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.3, 0.15])
@pytest.mark.parametrize("resource", ["flops", "params"])
def test_budgets_are_kept_and_reached(resource: str, share: float) -> None:
    before, after = planned(Residual(width=64, inner=96), **{resource: share}).totals[resource]
    assert (share - 0.02) * before <= after <= share * before


def test_two_budgets_are_both_kept() -> None:
    totals = planned(flops=0.6, params=0.4).totals
    assert totals["flops"][1] <= 0.6 * totals["flops"][0] and totals["params"][1] <= 0.4 * totals["params"][0]


def test_amounts_can_be_absolute() -> None:
    whole = planned(flops=1.0).totals["flops"][0]
    assert planned(flops=whole / 2).totals == planned(flops=0.5).totals
    assert planned(flops=f"{whole / 2e6}M").totals["flops"][1] <= whole / 2


@given(st.lists(st.integers(0, 5), min_size=2, max_size=2))
def test_predicted_cost_is_what_the_small_model_costs(steps: list[int]) -> None:
    model = Residual()
    graph = surgeon.trace(model, image())
    units = np.concatenate([g.units[: g.size * s // 6] for g, s in zip(graph.free, steps, strict=True)])
    alive = ~graph.dead_classes(units)
    counts = np.asarray(graph.incidence @ alive.astype(np.int64))
    plan = surgeon.plan.__globals__["describe"](graph, units, {}, {})
    small = surgeon.operate(model, plan)
    assert cost.params(graph).total(counts) == sum(p.numel() for p in small.parameters())


def test_gradient_of_a_cost_is_its_slope() -> None:
    model, inputs = build("resnext")
    graph = surgeon.trace(model, inputs)
    total = cost.flops(graph)
    counts = graph.initial.astype(float)
    slope = total.gradient(counts)
    for k in range(0, len(counts), 3):
        moved = counts.copy()
        moved[k] += 1e-4
        assert (total.total(moved) - total.total(counts)) / 1e-4 == pytest.approx(slope[k], rel=1e-3, abs=1e-2)


def test_scores_decide_what_goes() -> None:
    model = Residual()
    weak = torch.tensor([1, 4, 7, 9])
    model.conv1.weight.data[weak] *= 1e-3
    model.conv2.weight.data[:, weak] *= 1e-3
    plan = planned(model, ratio=0.3334, scope="local")
    (selection,) = [s for s in plan.cuts["conv1.weight"].selections if s.dims == (0,)]
    assert set(range(12)) - set(selection.keep.tolist()) == set(weak.tolist())


def test_what_scores_below_zero_costs_nothing() -> None:
    graph = surgeon.trace(Residual().eval(), image())
    torch.manual_seed(3)
    scores = {group.name: torch.randn(len(group.units), dtype=torch.float64) for group in graph.free}
    plan = surgeon.plan(graph, scores, flops=0.5)
    clipped = surgeon.plan(graph, {name: values.clamp(min=0) for name, values in scores.items()}, flops=0.5)
    assert plan.loss == clipped.loss > 0
    assert [group.removed for group in plan.groups] == [group.removed for group in clipped.groups]


class Guarded(nn.Module):
    """Refuses to run on few channels, as batch norm does on single values."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least
        self.first = nn.Linear(4, 16)
        self.last = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if x.shape[1] < self.least:
            raise ValueError("too few channels")
        return self.last(x)


@pytest.mark.parametrize(("least", "stays"), [(1, 1), (2, 2), (3, 4), (8, 8)])
def test_a_comparison_of_sizes_leaves_what_it_needs(least: int, stays: int) -> None:
    model, x = Guarded(least), torch.randn(2, 4)
    graph = surgeon.trace(model, x)
    plan = surgeon.plan(graph, surgeon.score(graph, "l1"), ratio=0.99, scope="local", floor=0)
    assert surgeon.operate(model, plan).first.out_features == stays


def test_a_comparison_that_holds_for_no_other_size_pins() -> None:
    with pytest.raises(surgeon.errors.NothingPrunable, match="compared at"):
        surgeon.prune(Guarded(16), torch.randn(2, 4), ratio=0.5)


def test_lists_of_budgets_give_nested_plans() -> None:
    plans = planned(flops=[0.8, 0.6, 0.4])
    whole = plans[0].totals["flops"][0]
    assert [plan.settings["flops"] for plan in plans] == [0.8, 0.6, 0.4]
    for milder, harder in pairwise(plans):
        assert set(milder.cuts) <= set(harder.cuts)
        for name, cut in milder.cuts.items():
            for ours, theirs in zip(cut.selections, harder.cuts[name].selections):
                assert set(theirs.keep.tolist()) <= set(ours.keep.tolist())
        assert milder.loss <= harder.loss
    for plan in plans:
        assert plan.totals["flops"][1] <= plan.settings["flops"] * whole


def test_lists_of_unlike_lengths_are_refused() -> None:
    with pytest.raises(BudgetError, match="of one length"):
        planned(flops=[0.8, 0.6], params=[0.7])
    for rising in ([0.4, 0.6], ["100K", "200K"], [1000, 0.9]):
        with pytest.raises(BudgetError, match="largest first"):
            planned(params=rising)


class Scaled(nn.Module):
    """Nothing here that fvcore counts."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.scale = nn.Embedding(10, 16), nn.Parameter(torch.ones(16))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return (self.table(tokens) * self.scale).sum(-1)


def test_a_budget_on_what_a_model_has_none_of_is_refused() -> None:
    graph = surgeon.trace(Scaled(), torch.arange(5))
    with pytest.raises(NothingPrunable, match="use params="):
        surgeon.plan(graph, surgeon.score(graph), flops=0.5)
    assert surgeon.plan(graph, surgeon.score(graph), params=0.5).totals["params"] == (176, 88)


class Towers(nn.Module):
    """Two blocks of a kind, and one whose hidden layer is of another size."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 8)) for hidden in (32, 32, 48)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def test_uniform_keeps_one_width_for_layers_of_a_kind() -> None:
    torch.manual_seed(0)
    model, x = Towers(), torch.randn(4, 8)
    nn.init.normal_(model.blocks[0][0].weight, std=0.01)  # alone, this block would lose more
    graph = surgeon.trace(model, x)
    scores = surgeon.score(graph)
    free, tied = (surgeon.plan(graph, scores, params=0.6, floor=0, uniform=u) for u in (False, True))
    assert free.loss <= tied.loss
    widths = left(tied)
    assert widths["blocks.0.0"] == widths["blocks.1.0"]
    assert tied.totals["params"][1] <= 0.6 * tied.totals["params"][0]
    surgeon.verify(model, surgeon.operate(model, tied), tied, x)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.12.mlp.gate_proj", "model.layers.*.mlp.gate_proj"),
        ("layer1.0.conv1", "layer1.*.conv1"),
        ("features.3", "features.*"),
        ("blocks.7#2", "blocks.*#2"),
        ("fc2", "fc2"),
    ],
)
def test_kinds_drop_the_numbers_of_layers(name: str, expected: str) -> None:
    assert kind(name) == expected


def test_limits_may_ask_for_a_least_share() -> None:
    assert left(planned(flops=0.9, groups={"conv1": (0.5, 0.6)}))["conv1"] in range(20, 25)
    assert left(planned(ratio=0.0, scope="local", groups={"conv1": (0.25, 1.0)})) == {"stem": 32, "conv1": 36}
    with pytest.raises(BudgetError, match="least and the largest"):
        planned(flops=0.9, groups={"conv1": (0.6, 0.5)})


def test_given_losses_decide() -> None:
    model, x = Residual(width=32, inner=48), image()
    graph = surgeon.trace(model, x)
    scores = surgeon.score(graph)
    cheap = {"stem": ([8, 16, 24], [5.0, 9.0, 20.0]), "conv1": ([12, 24, 36, 43], [0.0, 0.0, 0.01, 0.01])}
    plan = surgeon.plan(graph, scores, flops=0.6, losses=cheap)
    assert left(plan)["stem"] == 32 and plan.loss == pytest.approx(0.01, abs=0.01)
    with pytest.raises(UnknownLayer):
        surgeon.plan(graph, scores, flops=0.6, losses={"sten": ([1], [1.0])})
    with pytest.raises(ScoreError, match="increasing"):
        surgeon.plan(graph, scores, flops=0.6, losses={"stem": ([2, 1], [1.0, 2.0])})


def test_infeasible_budgets_name_the_reachable_minimum() -> None:
    with pytest.raises(InfeasibleBudget, match=r"at least [\d.e+]+"):
        planned(flops=0.01, floor=0.5)


def test_auto_rounds_to_what_the_device_likes() -> None:
    plan = planned(flops=0.5, round_to="auto")
    assert plan.settings["round_to"] == 8 and all(n % 8 == 0 for n in left(plan).values())
    with pytest.raises(BudgetError, match="'auto'"):
        planned(flops=0.5, round_to="nicely")


def test_pareto_is_a_falling_curve_of_nested_plans(tmp_path: Path) -> None:
    graph = surgeon.trace(Residual(width=32, inner=48), image())
    curve = surgeon.pareto(graph, surgeon.score(graph), flops=(0.3, 0.9), points=5)
    assert len(curve.plans) == 5 and curve.left[0] <= 0.9 and curve.left[-1] <= 0.3
    assert all(a > b for a, b in pairwise(curve.left)) and all(a < b for a, b in pairwise(curve.losses))
    assert len(str(curve).splitlines()) == 6
    pytest.importorskip("matplotlib")
    curve.plot(tmp_path / "curve.svg")
    assert "predicted loss" in (tmp_path / "curve.svg").read_text()


@pytest.mark.parametrize(
    "options", [{}, {"flops": 0.5}, {"flops": (0.5, 0.5)}, {"flops": (0.2, 0.9), "params": (0.2, 0.9)}, {"points": 1}]
)
def test_pareto_refuses_what_is_no_pair(options: dict[str, Any]) -> None:
    graph = surgeon.trace(Residual(), image())
    given_points = {"flops": (0.2, 0.9), **options} if "points" in options else options
    with pytest.raises(BudgetError):
        surgeon.pareto(graph, surgeon.score(graph), **given_points)


def test_prune_takes_one_budget() -> None:
    with pytest.raises(BudgetError, match=r"surgeon\.plan"):
        surgeon.prune(Residual(), image(), flops=[0.8, 0.5])
