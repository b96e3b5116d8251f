"""Operators of exported programs: their names, and that each spelling computes what its operator does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from surgeon.aten import SPELLED, is_inplace, spelling, table_name
from surgeon.dispatch import intercept, op_name
from surgeon.trace import Tracked
from surgeon.trace.integers import Attribute, expression

ATEN = torch.ops.aten


def t(*shape: int) -> Tensor:
    """Return a tensor of distinct values, the same for a shape each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


INDEX = torch.tensor([2, 0, 1])
PAIR = [1, 1]
CASES: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (ATEN.convolution.default, (t(2, 4, 6, 6), t(6, 2, 3, 3), t(6), PAIR, PAIR, PAIR, False, [0, 0], 2), {}),
    (ATEN.convolution.default, (t(2, 4, 6), t(4, 3, 3), None, [2], [1], [1], True, [1], 2), {}),
    (ATEN._native_batch_norm_legit_no_training.default, (t(2, 4, 3), t(4), t(4), t(4), t(4).exp(), 0.1, 1e-5), {}),
    (ATEN._native_batch_norm_legit.no_stats, (t(2, 4, 3), t(4), None, True, 0.1, 1e-5), {}),
    (ATEN.native_layer_norm.default, (t(2, 3, 4), [3, 4], t(3, 4), None, 1e-5), {}),
    (ATEN._fused_rms_norm.default, (t(2, 3, 4), [4], t(4), 1e-5), {}),
    (ATEN.native_group_norm.default, (t(2, 6, 5), t(6), t(6), 2, 6, 5, 3, 1e-5), {}),
    (ATEN._scaled_dot_product_flash_attention_for_cpu.default, (t(2, 2, 5, 4), t(2, 2, 5, 4), t(2, 2, 5, 4)), {}),
    (
        ATEN._scaled_dot_product_flash_attention_for_cpu.default,
        (t(2, 2, 5, 4), t(2, 2, 5, 4), t(2, 2, 5, 4), 0.0),
        {"attn_mask": t(5, 5), "scale": 0.7},
    ),
    (ATEN._adaptive_avg_pool2d.default, (t(2, 3, 6, 6), [2, 3]), {}),
    (ATEN._prelu_kernel.default, (t(2, 3, 4), t(1, 3, 1)), {}),
    (ATEN.view.default, (t(2, 6), [2, 3, 2]), {}),
    (ATEN.view.dtype, (t(2, 6), torch.int32), {}),
    (ATEN._unsafe_view.default, (t(2, 6), [-1, 3]), {}),
    (ATEN.view_copy.default, (t(2, 6), [4, 3]), {}),
    (ATEN.as_strided.default, (t(2, 6, 1, 1), [2, 6, 1, 1], [6, 1, 6, 6]), {}),
    (ATEN.as_strided.default, (t(6, 6), [2, 3], [6, 2], 1), {}),
    (ATEN.constant_pad_nd.default, (t(2, 3), [1, 2, 0, 1], 0.5), {}),
    (ATEN.full.default, ([2, 3], True), {"dtype": torch.bool}),
    (ATEN.full.default, ([2, 3], 1.5), {}),
    (ATEN.slice.Tensor, (t(2, 6), 1, 2, 2**63 - 1), {}),
    (ATEN.slice.Tensor, (t(2, 6), -1, -4, -1, 2), {}),
    (ATEN.slice.Tensor, (t(6, 2),), {}),
    (ATEN.slice_copy.Tensor, (t(2, 6), 1, 0, 9), {}),
    (ATEN.slice_scatter.default, (t(2, 6), t(2, 3), 1, 1, 4), {}),
    (ATEN.select_scatter.default, (t(2, 6), t(2), 1, -2), {}),
    (ATEN.index.Tensor, (t(2, 3, 4), [None, INDEX]), {}),
    (ATEN._unsafe_index.Tensor, (t(2, 3, 4), [None, INDEX, INDEX]), {}),
    (ATEN.index_put.default, (t(2, 3), [None, INDEX], t(2, 3).exp()), {}),
    (ATEN.index_put.default, (t(2, 3), [None, INDEX * 0], t(2, 3).exp(), True), {}),
    (ATEN.index_put.default, (t(3, 2), [torch.tensor([0, 0])], t(2, 2), True), {}),
    (ATEN._unsafe_index_put.default, (t(2, 3), [None, INDEX], t(2, 3).exp()), {}),
    (ATEN.sym_size.int, (t(2, 3), 1), {}),
    (ATEN.sym_numel.default, (t(2, 3),), {}),
]
# Kernels for devices that a test can't count on; the spelling is that of the kernel for the CPU.
ELSEWHERE = {
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_fused_attention_overrideable",
}


@pytest.mark.parametrize(("operator", "args", "kwargs"), CASES, ids=[str(case[0]) for case in CASES])
def test_spelling(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    spelled = spelling(operator)
    assert spelled is not None
    found, expected = spelled(*args, **kwargs), operator(*args, **kwargs)
    if not isinstance(expected, (tuple, list)):
        found, expected = [found], [expected]
    assert len(found) >= len(expected)
    # Statistics that only a backward pass reads are left out.
    for mine, own in zip(found, expected):
        if mine is not None:
            torch.testing.assert_close(mine, own)
    assert found[0] is not None


def test_every_spelling_is_exercised() -> None:
    assert {str(case[0]._schema.name).removeprefix("aten::") for case in CASES} == SPELLED.keys() - ELSEWHERE


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (ATEN.linear.default, "linear"),
        (ATEN.add_.Tensor, "add"),
        (ATEN._softmax.default, "softmax"),
        (ATEN._to_copy.default, "to"),
        (ATEN.permute_copy.default, "permute"),
        (ATEN.copy.default, "copy"),
        (ATEN.native_channel_shuffle.default, "channel_shuffle"),
        (Tensor.__radd__, "add"),
        (torch.conv2d, "conv2d"),
    ],
)
def test_names(function: Any, name: str) -> None:
    assert op_name(function) == name


def test_operators_of_others_are_not_taken_for_those_of_torch() -> None:
    library = torch.library.Library("surgeon_test", "FRAGMENT")
    library.define("add(Tensor x) -> Tensor")
    assert table_name(torch.ops.surgeon_test.add.default) == "surgeon_test::add"


def test_inplace() -> None:
    assert is_inplace(ATEN.add_.Tensor) and is_inplace(Tensor.add_)
    assert not is_inplace(ATEN.add.Tensor) and not is_inplace(Tensor.__add__)


def test_operators_are_intercepted_as_they_are_spelled() -> None:
    seen: list[str] = []

    def listen(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.append(op_name(function))
        return function(*args, **kwargs)

    x, y = t(2, 4), t(2, 3)
    with intercept(listen):
        ATEN.relu.default(x)
        ATEN.native_layer_norm.default(x, [4], None, None, 1e-5)
        ATEN.index_put.default(x, [None, INDEX], y, True)
    assert seen == ["relu", "layer_norm", "index_put"]


def test_a_negated_size_remembers_its_source() -> None:
    size = -Tracked(4, Attribute("crop", "border"))
    assert size == -4 and str(expression(size)) == "(0 - crop.border)"
    assert pytree.tree_leaves(size) == [-4]
