"""The graph that follows a cut is the one that a new trace of the small model gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import surgeon
from surgeon.graph import DependencyGraph
from surgeon.plan import cost as costs
from surgeon.plan.describe import units_of
from surgeon.pruner.original import Left, Options, Original
from tests.zoo import build

# Residual streams, grouped and depthwise convolutions, dense concatenation, attention by heads and grouped queries,
# gates, recurrent layers, tied weights, shuffled channels, layers called twice.
NETWORKS = """
resnet20_pad weight_norm densenet shufflenet_v2 two_groupings resnext selective_kernel called_twice diffusion_unet dcgan
vit tied_lm glu raft crnn
""".split()


def whole(graph: DependencyGraph) -> Left:
    return Left(graph, np.arange(len(graph.solution.class_of)))


def cut(left: Left, made: surgeon.Plan) -> Left:
    after = left.without(made)
    surgeon.operate(left.graph.model, made, inplace=True)
    return after()


def looks(graph: DependencyGraph) -> list[Any]:
    return [
        (
            g.name,
            g.size,
            len(g.units),
            [len(row) for row in g.grid],
            [str(m) for m in g.members],
            g.least,
            graph.reason(g),
        )
        for g in graph.groups
    ]


def totals(graph: DependencyGraph) -> list[float]:
    return [c(graph).total(graph.initial) for c in (costs.flops, costs.params, costs.bytes_held, costs.memory)]


def plan_of(graph: DependencyGraph, **budget: Any) -> surgeon.Plan:
    return surgeon.plan(graph, surgeon.score(graph, "l1"), **budget)


@pytest.mark.parametrize("name", NETWORKS)
def test_after_cuts_as_traced_anew(name: str) -> None:
    model, inputs = build(name)
    left = whole(surgeon.trace(model, inputs))
    first, composed = left, None
    for _ in range(2):
        made = plan_of(left.graph, ratio=0.3, scope="local")
        left, composed = cut(left, made), made if composed is None else composed.then(made)
        fresh = surgeon.trace(model, inputs)
        assert looks(left.graph) == looks(fresh)
        assert totals(left.graph) == totals(fresh)
        # The next plan is the same to the last bit: positions, attributes, statistics, costs, loss and bound.
        asked = {"params": 0.75, "floor": 0.05}
        assert plan_of(left.graph, **asked).to_json() == plan_of(fresh, **asked).to_json()
        # At once from the original, as a run that is resumed does.
        assert composed is not None
        at_once = first.without(composed)()
        assert np.array_equal(at_once.labels, left.labels)
        assert looks(at_once.graph) == looks(left.graph)


def test_rows_and_columns_of_one_table() -> None:
    """Heads go, then columns within heads, then heads again."""
    model, inputs = build("vit")
    left = whole(surgeon.trace(model, inputs))
    for heads in (True, False, "both"):
        left = cut(left, plan_of(left.graph, ratio=0.2, heads=heads))
        fresh = surgeon.trace(model, inputs)
        assert looks(left.graph) == looks(fresh) and totals(left.graph) == totals(fresh)
        assert plan_of(left.graph, flops=0.9).cuts == plan_of(fresh, flops=0.9).cuts


def test_units_of_a_plan_are_those_that_it_was_made_of() -> None:
    model, inputs = build("resnext")
    graph = surgeon.trace(model, inputs)
    made = plan_of(graph, ratio=0.4)
    removed = {g.name: g.removed for g in made.groups}
    units = set(units_of(graph, made).tolist())
    for group in graph.free:
        gone = len(units & set(group.units.tolist()))
        assert gone * group.size == removed[group.name] * len(group.units)


def test_what_would_leave_no_rectangle_is_refused_before_anything_is_cut() -> None:
    """A single cell of a table: the rows of a grouped convolution would be of unequal length."""
    model, inputs = build("resnext")
    graph = surgeon.trace(model, inputs)
    group = next(g for g in graph.free if len(g.grid) > 1)
    with pytest.raises(surgeon.SurgeonError, match="keep unequally many"):
        graph.without(group.units[:1])
    assert graph.without(group.first_step).flow.space.count < graph.flow.space.count


def test_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = build("resnext")
    left = whole(surgeon.trace(model, inputs))
    made = plan_of(left.graph, ratio=0.3)
    monkeypatch.setattr(torch.nn.Module, "__call__", None)
    assert cut(left, made).graph.free


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_found_again(name: str) -> None:
    """Down to the last unit of many groups, where names move: a group is cut from places of the one that it was."""
    model, inputs = build(name)
    graph = surgeon.trace(model, inputs)
    original, left = Original(graph, Options(floor=0.0)), whole(graph)
    for ratio in (0.5, 0.9):
        try:
            left = cut(left, plan_of(left.graph, ratio=ratio, scope="local", floor=0.0))
        except surgeon.errors.NothingPrunable:
            continue
        names = original.names(left)
        before, after = ({g.name: g for g in each.free} for each in (graph, left.graph))
        assert names.keys() == after.keys() and len(set(names.values())) == len(names)
        for mine, theirs in names.items():
            assert {str(m) for m in after[mine].members} <= {str(m) for m in before[theirs].members}
            assert after[mine].size <= before[theirs].size
        assert 0 < original.shares(left)["ratio"] < 1
