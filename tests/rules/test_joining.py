"""Squares of the ops that put tensors side by side."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tests.rules.harness import Case, square

CAT = (torch.cat, torch.concat, torch.concatenate)


@square("cat", "concat", "concatenate", examples=80)
def test_cat(case: Case) -> None:
    shape = list(case.shape(case.size(1, 3), 1, 3))
    dim, count = case.dim(len(shape)), case.size(2, 4)
    sizes = [case.size(1, 3) for _ in range(count)]
    solid = case.of(None, *range(count))
    tensors = [case.tensor(*(s if d == dim % len(shape) else n for d, n in enumerate(shape))) for s in sizes]
    names = [f"x{i}" for i in range(count) if i != solid]
    operands = {name: tensors[int(name[1:])] for name in names}
    join = case.of(*CAT)

    def forward(m: Any, *inputs: Any) -> Any:
        parts = [inputs[0] if i == solid else getattr(m, f"x{i}") for i in range(count)]
        return join(parts, dim)

    case.check(forward, inputs=() if solid is None else (tensors[solid],), **operands)


@square("cat")
def test_cat_leaves_each_its_own(case: Case) -> None:
    n, a, b = case.shape(3, 2, 4)
    x, y = case.tensor(n, a), case.tensor(n, b)
    case.check(lambda m: torch.cat((m.x, m.y), dim=1), x=x, y=y, cut="x:0 x:1 y:0 y:1")


@square("cat")
def test_cat_with_a_number_of_zeros(case: Case) -> None:
    n, a = case.shape(2, 2, 4)
    k = case.size(1, 3)
    case.check(lambda m: torch.cat((m.x, m.x.new_zeros(m.x.shape[0], k)), 1), x=case.tensor(n, a), cut="x:0 x:1")


@square("cat", "linear", "view", examples=20)
def test_dense_block_before_heads(case: Case) -> None:
    a, b, h, o = case.size(1, 3), case.size(1, 3), case.size(1, 3), case.size(2, 3)
    operands = {"x": case.tensor(2, h * a), "y": case.tensor(2, h * b), "w": case.tensor(o, h * (a + b))}

    def forward(m: Any) -> Any:
        both = torch.cat((m.x.view(2, m.h, -1), m.y.view(2, m.h, -1)), -1)
        return F.linear(both.flatten(1), m.w)

    case.check(forward, h=h, dress=False, **operands)


@square("cat")
def test_cat_of_a_tensor_with_itself(case: Case) -> None:
    n, a = case.shape(2, 2, 4)
    dim = case.dim(2)
    case.check(lambda m: torch.cat((m.x, m.x, -m.x), dim), x=case.tensor(n, a), cut="x:0 x:1")


@square("stack", examples=40)
def test_stack(case: Case) -> None:
    shape, count = case.shape(case.size(1, 2), 2, 4), case.size(2, 4)
    dim = case.dim(len(shape) + 1)
    operands = {f"x{i}": case.tensor(*shape) for i in range(count)}
    cut = " ".join(f"x{i}:{d}" for i in range(count) for d in range(len(shape)))
    case.check(lambda m: torch.stack([getattr(m, name) for name in operands], dim=dim), cut=cut, **operands)


@square("stack")
def test_stack_with_an_input_keeps_everything_it_meets(case: Case) -> None:
    n, c = case.shape(2, 2, 4)
    case.check(
        lambda m, s: torch.stack((m.x, s + m.b)),
        inputs=(case.tensor(1, c),),
        x=case.tensor(n, c),
        b=case.tensor(n, 1),
        cut="x:0 b:0",
        stays={"x:1": ""},
    )


@square("stack", "softmax", "sum", "mul")
def test_branches_weighted_by_a_softmax(case: Case) -> None:
    n, c = case.size(1, 3), case.size(2, 4)

    def forward(m: Any) -> Any:
        branches = torch.stack((m.x, m.y), 1)
        return (branches * m.z.view(n, 2, -1).softmax(1)).sum(1)

    case.check(forward, x=case.tensor(n, c), y=case.tensor(n, c), z=case.tensor(n, 2 * c), dress=False, cut="x:1 y:1")


@square("pad", examples=60)
def test_constant_padding(case: Case) -> None:
    shape = case.shape(case.size(1, 3), 2, 3)
    pairs = case.size(1, len(shape))
    amounts = [case.size(0, 2) for _ in range(2 * pairs)]
    tracked = {f"p{i}": amount for i, amount in enumerate(amounts)} if case.flip() else {}
    value = case.of(0.0, 1.5)
    case.check(
        lambda m: F.pad(m.x, [getattr(m, name) for name in tracked] or amounts, "constant", value),
        x=case.tensor(*shape),
        **tracked,
    )


@square("pad", "constant_pad_nd", examples=20)
def test_padding_a_width_leaves_it_free(case: Case) -> None:
    n, c = case.shape(2, 2, 4)
    pad = case.of(F.pad, torch.constant_pad_nd)
    case.check(lambda m: pad(m.x, (1, 2)), x=case.tensor(n, c), cut="x:0 x:1")


@square("pad", examples=20)
def test_negative_padding(case: Case) -> None:
    n, c = case.shape(2, 3, 4)
    case.check(lambda m: F.pad(m.x, (-1, 1)), x=case.tensor(n, c))


@square("pad", examples=30)
def test_other_padding(case: Case) -> None:
    n, c, h = case.size(2, 3), case.size(2, 3), case.size(3, 4)
    mode = case.of("reflect", "replicate", "circular")
    case.check(lambda m: F.pad(m.x, (1, 2), mode=mode), x=case.tensor(n, c, h), cut="x:0 x:1", stays={"x:2": ""})


@square("pad", "add")
def test_a_shortcut_padded_to_the_width_of_its_branch(case: Case) -> None:
    n, c, k = case.shape(3, 2, 4)
    x, y = case.tensor(n, c), case.tensor(n, c + 2 * k)
    case.check(lambda m: F.pad(m.x, (m.k, m.k)) + m.y, x=x, y=y, k=k, dress=False, cut="x:0 y:0")


@square("hstack", "vstack", examples=40)
def test_stacks_along_a_dimension(case: Case) -> None:
    n, a, b = case.shape(3, 2, 4)
    join, x, y = case.of((torch.hstack, (n, a), (n, b)), (torch.vstack, (a, n), (b, n)))
    case.check(lambda m: join((m.x, m.y)), x=case.tensor(*x), y=case.tensor(*y), cut="x:0 x:1 y:0 y:1")


@square("hstack", "vstack", must_cut=False, examples=10)
def test_stacked_vectors_stay(case: Case) -> None:
    join = case.of(torch.hstack, torch.vstack)
    case.check(lambda m: join((m.x, m.y)), x=case.tensor(3), y=case.tensor(3), dress=False, stays={"x:0": "stack"})
