"""What a report draws says what graph, scores and plan say."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.dissect import dissect, histogram
from surgeon.report.anatomy import Anatomy
from tests.nets import Residual, image


class Attention(nn.Module):
    """Two linear layers around three heads of width four."""

    def __init__(self, dim: int = 8, heads: int = 3, width: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.first = nn.Linear(5, dim)
        self.qkv = nn.Linear(dim, 3 * heads * width)
        self.proj = nn.Linear(heads * width, dim)
        self.last = nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        weights = (0.5 * q @ k.transpose(-2, -1)).softmax(-1)
        return self.last(self.proj((weights @ v).transpose(1, 2).reshape(b, t, self.heads * self.width)))


def dissected(model: nn.Module, x: Any, **budget: Any) -> tuple[Any, Any, surgeon.Plan, Anatomy]:
    graph = surgeon.trace(model, x)
    scores = surgeon.score(graph, "l1")
    plan = surgeon.plan(graph, scores, **budget)
    assert isinstance(plan, surgeon.Plan)
    return graph, scores, plan, dissect(graph, scores, plan)


CASES = {
    "residual": (Residual, lambda: image(), {"ratio": 0.5}),
    "columns": (Attention, lambda: torch.randn(1, 6, 5), {"ratio": 0.5}),
    "rows": (Attention, lambda: torch.randn(1, 6, 5), {"ratio": 0.4, "scope": "local", "heads": True}),
    "rows and columns": (Attention, lambda: torch.randn(1, 6, 5), {"ratio": 0.4, "scope": "local", "heads": "both"}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_gone_is_what_the_plan_removes(case: str) -> None:
    make, inputs, budget = CASES[case]
    graph, _, plan, anatomy = dissected(make(), inputs(), **budget)
    small = surgeon.operate(graph.model, plan)
    removed = {cut.name: cut.removed for cut in plan.groups}
    for group, coupling in zip(graph.groups, anatomy.groups):
        assert (coupling.name, coupling.size) == (group.name, group.size)
        assert coupling.removed == removed.get(group.name, 0)
        if group.pinned is not None:
            assert coupling.pinned == graph.reason(group) and coupling.gone == 0
        elif case in ("residual", "columns"):
            assert coupling.gone == coupling.removed * coupling.units // coupling.size
    for layer in anatomy.layers:
        if layer.width is not None:
            weight = layer.parameters[0]
            assert layer.width == (graph.tensor(weight).shape[0], small.get_parameter(weight).shape[0])


def test_a_head_that_goes_takes_its_columns_along() -> None:
    _, _, plan, anatomy = dissected(Attention(), torch.randn(1, 6, 5), ratio=0.4, scope="local", heads=True)
    removed = {cut.name: cut.removed for cut in plan.groups}
    heads = next(g for g in anatomy.groups if g.units == 3)
    columns = next(g for g in anatomy.groups if g.units == 24)
    assert removed[heads.name] == heads.gone == 1
    # Four columns each of q with k, and of v, go with the head, though no step of theirs does.
    assert removed[columns.name] == 0 and columns.gone == 8


@pytest.mark.parametrize("case", CASES)
def test_ties_and_edges_are_those_of_the_graph(case: str) -> None:
    make, inputs, budget = CASES[case]
    graph, _, _, anatomy = dissected(make(), inputs(), **budget)
    names = [layer.name for layer in anatomy.layers]
    assert names == list(graph.layers)
    assert {(names[a], names[b]) for a, b in anatomy.edges} == set(graph.layers.edges)
    assert sum(anatomy.ops.values()) == len(graph.nodes)
    for group in anatomy.groups:
        lines = graph.explain(group.members[0].parameter)
        for tie in group.ties:
            assert f"tied by {tie}" in lines
        if not group.pinned:
            here = next(g for g in graph.groups if g.name == group.name)
            assert list(dict.fromkeys(graph._ties(here))) == list(group.ties)
    assert any(group.ties for group in anatomy.groups)


def test_a_layer_names_the_group_that_it_makes_first() -> None:
    _, _, _, anatomy = dissected(Residual(), image(), ratio=0.5)
    groups = {layer.name: layer.groups for layer in anatomy.layers}
    assert groups["conv1"] == ("conv1", "stem") and groups["conv2"] == ("stem", "conv1")
    assert groups["head"] == ("head", "stem")
    assert {layer.name: layer.op for layer in anatomy.layers}["bn1"] == "batch_norm"


def test_the_line_parts_what_goes_from_what_stays() -> None:
    _, scores, _, anatomy = dissected(Residual(), image(), ratio=0.5)
    for group in anatomy.groups:
        if group.pinned:
            assert group.scores is None
            continue
        values = np.asarray(scores[group.name], float)
        found = group.scores
        assert found is not None and sum(found.stay) == group.units - group.gone and sum(found.go) == group.gone
        assert found.cut is not None and (values < found.cut).sum() == group.gone
        assert found.edges[0] == values.min() and found.edges[-1] == values.max()


def test_histograms_of_odd_scores() -> None:
    none, half = np.zeros(4, bool), np.array([True, False, True, False])
    assert histogram(np.array([1.0, 2.0, np.nan, 3.0]), none) is None
    assert histogram(np.zeros(0), np.zeros(0, bool)) is None
    flat = histogram(np.ones(4), half)
    assert flat is not None and flat.cut == 1.0 and sum(flat.go) == 2
    # Rows that lose their own weakest: what stays of one is below what goes of the other, and there is no line.
    mixed = histogram(np.array([1.0, 2.0, 3.0, 4.0]), half)
    assert mixed is not None and mixed.cut is None and (sum(mixed.go), sum(mixed.stay)) == (2, 2)


def test_prune_attaches_it_and_keeps_no_model_alive() -> None:
    model = Residual()
    gone = weakref.ref(model)
    report = surgeon.prune(model, image(), ratio=0.5).report
    assert report.anatomy.model == "Residual" and len(report.anatomy.layers) == 5
    again = pickle.loads(pickle.dumps(report.anatomy))
    assert again == report.anatomy and copy.deepcopy(again) == again
    del model
    gc.collect()
    assert gone() is None
