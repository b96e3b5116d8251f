"""Two plans as one: what the second does to the result of the first, done to the original."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import surgeon
from surgeon.errors import PlanMismatch
from surgeon.operate.select import select
from surgeon.plan.compose import composed
from surgeon.plan.plan import Cut, Masked, Scale, Selection
from surgeon.verify.count import Count
from tests.nets import Residual, image
from tests.zoo import MODELS, build

UNCOUNTED = (Count(float("nan")), Count(float("nan")))


def cut(model: nn.Module, inputs: Any, seed: int, ratio: float = 0.4, **options: Any) -> surgeon.Plan:
    graph = surgeon.trace(model, inputs)
    scores = surgeon.score(graph, "random", seed=seed)
    return surgeon.plan(graph, scores, ratio=ratio, **{"scope": "local", **options})


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def attributes(model: nn.Module) -> dict[str, Any]:
    plain = (int, float, str)
    return {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, plain)
        or (isinstance(value, (tuple, list)) and all(isinstance(item, plain) for item in value))
    }


def assert_composes(model: nn.Module, inputs: Any, plans: list[surgeon.Plan]) -> surgeon.Plan:
    """Apply plans one by one and as one: every bit is the same, and the proof of the whole goes through."""
    small = model
    whole = None
    for plan in plans:
        small = surgeon.operate(small, plan)
        whole = plan if whole is None else whole.then(plan)
    at_once = surgeon.operate(model, whole)
    expected, found = tensors(small), tensors(at_once)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert attributes(small) == attributes(at_once)
    surgeon.verify(model, at_once, whole, inputs, counts=UNCOUNTED)
    again = surgeon.Plan.from_json(whole.to_json())
    assert again == whole and again.to_json() == whole.to_json()
    return whole


@pytest.mark.parametrize("name", list(MODELS))
def test_two_rounds_are_one(name: str) -> None:
    model, inputs = build(name)
    at = list(MODELS).index(name)
    first = cut(model, inputs, at, heads=at % 3 == 0)
    middle = surgeon.operate(model, first)
    graph = surgeon.trace(middle, inputs)
    assert graph.free
    second = surgeon.plan(
        graph, surgeon.score(graph, "random", seed=at + 1), ratio=0.5, heads=at % 3 != 0, scope="local"
    )
    whole = assert_composes(model, inputs, [first, second])
    assert whole.totals["params"] == (first.totals["params"][0], second.totals["params"][1])
    assert whole.settings["rounds"] == [first.settings, second.settings]


class Heads(nn.Module):
    """Attention whose scores are divided by the root of the width of a head, which factors make up for."""

    def __init__(self, heads: int = 3, width: int = 8) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.qkv = nn.Linear(6, 3 * heads * width)
        self.out = nn.Linear(heads * width, 6)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.width**-0.5).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(b, t, self.heads * self.width))


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.2, 0.4, 0.6]), st.sampled_from([False, True, "both"])), min_size=2, max_size=3
    ),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.integers(0, 1000),
)
def test_rounds_of_heads_and_widths_with_factors(rounds: Any, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    model, inputs = Heads().to(dtype).eval(), torch.randn(2, 4, 6, dtype=dtype)
    plans, small = [], model
    for ratio, heads in rounds:
        graph = surgeon.trace(small, inputs)
        if not graph.free:
            break
        try:
            plan = surgeon.plan(graph, surgeon.score(graph, "random", seed=seed), ratio=ratio, heads=heads)
        except surgeon.errors.NothingPrunable:
            break
        plans.append(plan)
        small = surgeon.operate(small, plan)
    if len(plans) < 2:
        return
    assert_composes(model, inputs, plans)
    if len(plans) == 3:
        a, b, c = plans
        assert a.then(b).then(c) == a.then(b.then(c))


def test_factors_of_both_rounds_are_kept() -> None:
    torch.manual_seed(0)
    model, inputs = Heads().double(), torch.randn(1, 4, 6, dtype=torch.float64)
    first = cut(model, inputs, 0)
    second = cut(surgeon.operate(model, first), inputs, 1)
    assert first.scales and second.scales
    whole = assert_composes(model, inputs, [first, second])
    assert len(whole.scales) == len(first.scales) + len(second.scales)


def test_groups_count_what_is_gone_of_the_original() -> None:
    model, inputs = Residual(width=8, inner=12), image()
    first = cut(model, inputs, 0, ratio=0.5)
    second = cut(surgeon.operate(model, first), inputs, 1, ratio=0.5)
    assert [str(g) for g in first.then(second).groups] == ["stem: 8 -> 2", "conv1: 12 -> 3"]
    assert first.then(second).cost["conv1"].params == (864.0, 54.0)


def test_edits_that_cancel_out_are_left_out() -> None:
    model, inputs = Residual(), image()
    first = cut(model, inputs, 0)
    edit = first.edits[0]
    back = surgeon.Plan(
        **{
            **vars(first),
            "cuts": {},
            "masked": (),
            "fingerprint": {n: first.cuts[n].new_shape if n in first.cuts else s for n, s in first.fingerprint.items()},
            "edits": (type(edit)(edit.owner, edit.name, edit.index, edit.new, edit.old),),
        }
    )
    assert edit not in first.then(back).edits and len(first.then(back).edits) == len(first.edits) - 1


def test_a_second_plan_for_another_model_is_refused() -> None:
    model, inputs = Residual(), image()
    first = cut(model, inputs, 0)
    with pytest.raises(PlanMismatch, match="not for the model that the first one makes"):
        first.then(first)
    with_bias = surgeon.operate(model, first)
    with_bias.conv1.register_parameter("bias", nn.Parameter(torch.zeros(with_bias.conv1.out_channels)))
    with pytest.raises(PlanMismatch, match=r"conv1\.bias.*compensation"):
        first.then(cut(with_bias, inputs, 1))


# -- single positions, against brute force -----------------------------------------------------------


@given(st.integers(0, 10_000))
def test_rows_that_lose_different_columns(seed: int) -> None:
    """Selections of single positions, of whole rows and of other dimensions, in either round."""
    draw = np.random.default_rng(seed)

    def joint(shape: tuple[int, int], columns: int) -> Selection:
        keep = [r * shape[1] + c for r in range(shape[0]) for c in sorted(draw.permutation(shape[1])[:columns])]
        return Selection((0, 1), shape[0] * shape[1], np.array(keep))

    def alone(dim: int, size: int, left: int) -> Selection:
        return Selection((dim,), size, np.sort(draw.permutation(size)[:left]))

    x = torch.arange(4 * 6 * 5.0).reshape(4, 6, 5)
    kinds = {
        "joint": lambda s: Cut(s, (s[0], s[1] - 1, s[2]), (joint(s[:2], s[1] - 1),)),
        "joint and third": lambda s: Cut(
            s, (s[0], s[1] - 1, s[2] - 1), (joint(s[:2], s[1] - 1), alone(2, s[2], s[2] - 1))
        ),
        "rows": lambda s: Cut(s, (s[0] - 1, *s[1:]), (alone(0, s[0], s[0] - 1),)),
        "columns": lambda s: Cut(s, (s[0], s[1] - 1, s[2]), (alone(1, s[1], s[1] - 1),)),
        "third": lambda s: Cut(s, (*s[:2], s[2] - 2), (alone(2, s[2], s[2] - 2),)),
    }
    for one, two in product(kinds, kinds):
        first = kinds[one](tuple(x.shape))
        second = kinds[two](first.new_shape)
        plans = [plan_of(first), plan_of(second)]
        whole = composed(*plans)["cuts"]["x"]
        expected = chosen(chosen(x, first), second)
        assert torch.equal(chosen(x, whole), expected)
        assert torch.equal(select(x, whole), expected)


def chosen(x: Tensor, cut: Cut) -> Tensor:
    """Pick single positions with a mask, whatever the selections are."""
    alive = torch.ones(x.shape, dtype=torch.bool)
    for s in cut.selections:
        flags = torch.zeros(s.of, dtype=torch.bool)
        flags[torch.from_numpy(s.keep)] = True
        alive &= flags.view([n if d in s.dims else 1 for d, n in enumerate(x.shape)])
    return x[alive].reshape(cut.new_shape)


def plan_of(cut: Cut, **fields: Any) -> surgeon.Plan:
    return surgeon.Plan({"x": cut}, {"x": cut.shape}, (), (), {}, {}, {"flops": (1, 1), "params": (1, 1)}, **fields)


def test_factors_without_a_place_in_the_original_are_refused() -> None:
    keep = np.array([0, 1, 2, 4, 6, 7])
    first = plan_of(Cut((3, 3), (3, 2), (Selection((0, 1), 9, keep),)))
    half = Cut((3, 2), (3, 1), (Selection((1,), 2, np.array([0])),))
    second = plan_of(half, scales=(Scale("x", 1, 2, np.array([0]), 2.0),))
    with pytest.raises(PlanMismatch, match="no single place in the original"):
        first.then(second)


def test_statistics_are_composed_whatever_dimensions_they_leave_out() -> None:
    whole = Cut((4,), (2,), (Selection((0,), 4, np.array([0, 1])),))
    rest = Cut((2,), (1,), (Selection((0,), 2, np.array([0])),))
    rows = Masked(0, "mean", 0, Selection((1,), 3, np.array([0, 2])), (3,))
    cells = Masked(0, "mean", 0, Selection((1, 2), 8, np.array([0, 1, 4, 5])), (2, 4))
    (found,) = plan_of(whole, masked=(rows,)).then(plan_of(rest, masked=(cells,))).masked
    # Rows 0 and 2 of three rows of four, of which the columns 0 and 1 stay.
    assert found.selection == Selection((1, 2), 12, np.array([0, 1, 8, 9])) and found.sizes == (3, 4)
    some = Masked(0, "mean", 0, Selection((1, 2), 12, np.array([0, 1, 10, 11])), (3, 4))
    columns = Masked(0, "mean", 0, Selection((2,), 2, np.array([1])), (2,))
    (found,) = plan_of(whole, masked=(some,)).then(plan_of(rest, masked=(columns,))).masked
    assert found.selection == Selection((1, 2), 12, np.array([1, 11]))
    with pytest.raises(PlanMismatch, match="call 0 is mean in one plan and sum in the other"):
        plan_of(whole, masked=(rows,)).then(plan_of(rest, masked=(Masked(0, "sum", 0, rows.selection, (3,)),)))
