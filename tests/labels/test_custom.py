"""Rules that users give: what is read, what is refused, and what a model with an op of its own can lose."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import RuleError
from surgeon.labels.rules import custom
from tests.rules.harness import Case, square


@torch.library.custom_op("surgeon_tests::scale", mutates_args=())
def scale(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight[:, None, None]


@torch.library.custom_op("surgeon_tests::mix", mutates_args=())
def mix(x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
    return torch.conv2d(x, weight, bias, groups=groups)


@torch.library.custom_op("surgeon_tests::scale_in_place", mutates_args=("x",))
def scale_in_place(x: Tensor, weight: Tensor) -> None:
    x.mul_(weight[:, None, None])


class Doubled(torch.autograd.Function):
    """Its body is plain torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


class Kernel(torch.autograd.Function):
    """Its body hands memory to a kernel that torch does not see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        out.numpy()[:] = 3 * x.detach().numpy()
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * grad


@pytest.fixture(autouse=True)
def untaught() -> Iterator[None]:
    saved = dict(custom.TAUGHT), dict(custom.LINES)
    yield
    for registry, entries in zip((custom.TAUGHT, custom.LINES), saved):
        registry.clear()
        registry.update(entries)


class Net(nn.Module):
    """Two convolutions with an op between them; a third that the op has nothing to do with."""

    def __init__(self, op: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.weight = nn.Parameter(torch.rand(8))
        self.second = nn.Conv2d(8, 6, 1)
        self.third = nn.Conv2d(6, 4, 1)
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.op(self.first(x), self.weight)).relu())


X = torch.randn(2, 3, 4, 4)
OPS = {
    "called": lambda x, w: scale(x, w),
    "packet": lambda x, w: torch.ops.surgeon_tests.scale(x, w),
    "overload": lambda x, w: torch.ops.surgeon_tests.scale.default(x, w),
    "keywords": lambda x, w: torch.ops.surgeon_tests.scale(weight=w, x=x),
}


@pytest.mark.parametrize("how", OPS)
def test_an_op_of_a_library_is_taught_in_one_line(how: str) -> None:
    model = Net(OPS[how])
    graph = surgeon.trace(model, X)
    assert [g.name for g in graph.free] == ["second"]
    assert "no rule for surgeon_tests::scale" in graph.explain("first")
    surgeon.rule("surgeon_tests::scale", "n c ..., c -> n c ...")
    result = surgeon.prune(model, X, ratio=0.5, scope="local")
    assert result.model.first.out_channels == 4 and result.model.weight.shape == (4,)
    assert result.model.second.out_channels == 3


def test_an_unknown_op_pins_only_what_it_touches() -> None:
    result = surgeon.prune(Net(OPS["called"]), X, ratio=0.5)
    assert result.model.first.out_channels == 8 and result.model.second.out_channels == 3


def test_an_op_that_writes_in_place_pins_what_it_touches() -> None:
    def op(x: Tensor, weight: Tensor) -> Tensor:
        scale_in_place(x, weight)
        return x

    assert [g.name for g in surgeon.trace(Net(op), X).free] == ["second"]


def test_autograd_functions_are_seen_through() -> None:
    result = surgeon.prune(Net(lambda x, w: Doubled.apply(x)), X, ratio=0.5, scope="local")
    assert result.model.first.out_channels == 4


def test_an_autograd_function_with_a_kernel_pins_what_it_touches() -> None:
    apply = Kernel.apply  # as modules often keep it
    graph = surgeon.trace(Net(lambda x, w: apply(x)), X)
    assert [g.name for g in graph.free] == ["second"]
    assert "no rule for Kernel" in graph.explain("first")
    surgeon.rule("Kernel", "... -> ...")
    result = surgeon.prune(Net(lambda x, w: apply(x)), X, ratio=0.5, scope="local")
    assert result.model.first.out_channels == 4


def test_the_body_of_a_taught_function_says_nothing() -> None:
    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.masked_scatter(x > 100, x)

    model = Net(lambda x, w: Odd.apply(x))
    assert [g.name for g in surgeon.trace(model, X).free] == ["second"]
    surgeon.rule("Odd", "n c * -> n c *")
    assert surgeon.prune(model, X, ratio=0.5, scope="local").model.first.out_channels == 4
    assert "apply" not in vars(torch.autograd.function._SingleLevelFunction)


def test_functions_of_other_threads_are_left_alone() -> None:
    found = []

    def op(x: Tensor, weight: Tensor) -> Tensor:
        other = Thread(target=lambda: found.append(Kernel.apply(torch.ones(2, 8, 4, 4))))
        other.start()
        other.join()
        return x

    assert [g.name for g in surgeon.trace(Net(op), X).free] == ["first", "second"]
    assert bool((found[0] == 3).all())


WRONG = {
    "n c, c": "one '->'",
    "n c -> c -> n": "one '->'",
    "n c, c -> n d": "'d'",
    "n c c -> n": "'c' is twice",
    "n ... *, c -> n c": "more than one",
    "n (g c), (g o) -> n o": "can't be told apart",
    "n (c, c -> n c": "can't read 'n (c'",
    "n c; c -> n c": "can't read",
    "-> n c": "",
    "x[n c -> n c": "can't read",
    "n c over c -> n c": "",
    "n c -> n c over c": "statistics",
}


@pytest.mark.parametrize("line", WRONG)
def test_malformed_rules_say_what_is_wrong(line: str) -> None:
    with pytest.raises(RuleError) as caught:
        surgeon.rule("surgeon_tests::scale", line)
    assert WRONG[line] in str(caught.value) and repr(line) in str(caught.value)
    assert "surgeon_tests::scale" not in custom.TAUGHT


def test_names_are_those_of_ops_without_a_rule() -> None:
    for name in ("my lib::op", "a::b::c", ""):
        with pytest.raises(RuleError, match="names no op"):
            surgeon.rule(name, "... -> ...")
    with pytest.raises(RuleError, match="has a rule already"):
        surgeon.rule("conv2d", "... -> ...")
    surgeon.rule("Kernel", "... -> ...")
    surgeon.rule("Kernel", "... -> ...")
    with pytest.raises(RuleError, match=r"already: \.\.\. -> \.\.\."):
        surgeon.rule("Kernel", "n c -> n c")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("n c ..., c, c -> n c ...", "2 tensors"),
        ("n c ... -> n c ...", "2 tensors"),
        ("n c, c -> n c", "4 dimensions"),
        ("c n ..., c -> c n ...", "c is 2 and 8 long"),
        ("x[n c ...] -> n c ...", "does not name all tensors"),
    ],
)
def test_a_rule_that_does_not_fit_the_call_pins_what_it_touches(line: str, why: str) -> None:
    surgeon.rule("surgeon_tests::scale", line)
    graph = surgeon.trace(Net(OPS["called"]), X)
    assert [g.name for g in graph.free] == ["second"]
    assert why in graph.explain("first")


@square(examples=40)
def test_taught_ops_commute(case: Case) -> None:
    surgeon.rule("surgeon_tests::scale", "n c ..., c -> n c ...")
    n, c = case.size(1, 3), case.size(2, 4)
    case.check(lambda m: scale(m.x, m.w), x=case.tensor(n, c, 2, 2), w=case.tensor(c), cut="x:1 w:0")


@square(examples=40)
def test_the_long_form_names_arguments_and_sizes(case: Case) -> None:
    surgeon.rule("surgeon_tests::mix", "x[n (g i) *] weight[(g o) i *] bias[(g o)] groups=g -> n (g o) *")
    n, g, i, o = case.size(1, 2), case.size(1, 3), case.size(1, 3), case.size(1, 3)
    bias = case.tensor(g * o) if case.flip() else None
    x, w = case.tensor(n, g * i, 2, 2), case.tensor(g * o, i, 1, 1)
    case.check(lambda m: mix(m.x, m.w, m.bias, m.groups), x=x, w=w, bias=bias, groups=g, dress=("x",))


def test_nothing_keeps_the_recording_of_an_autograd_function() -> None:
    """Neither its labels nor the tensors of the model, once the graph is gone."""
    graph = surgeon.trace(Net(lambda x, w: Doubled.apply(x)), X)
    flow = weakref.ref(graph.flow)
    del graph
    gc.collect()
    assert flow() is None
