"""Squares of the ops that put positions elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume

from tests.rules.harness import Case, square


def _all(shape: tuple[int, ...], but: tuple[int, ...] = ()) -> str:
    """Name all dimensions of ``x`` but some."""
    but = tuple(d % len(shape) for d in but)
    return " ".join(f"x:{d}" for d in range(len(shape)) if d not in but)


def _factors(case: Case, size: int) -> list[int]:
    """Draw sizes whose product is given."""
    found = []
    while size > 1 and len(found) < 3:
        found.append(case.of(*(d for d in range(1, size + 1) if size % d == 0)))
        size //= found[-1]
    return [*found, size]


# -- the same positions in another order -------------------------------------------------------------

TURNED: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "T": (2, lambda x: x.T),
    "H": (2, lambda x: x.H),
    "mT": (3, lambda x: x.mT),
    "mH": (3, lambda x: x.mH),
    "adjoint": (3, lambda x: x.adjoint()),
    "t": (2, lambda x: x.t()),
    "fliplr": (2, torch.fliplr),
    "flipud": (2, torch.flipud),
    "flip": (3, lambda x: x.flip(0, -1)),
    "transpose": (3, lambda x: x.transpose(0, -1)),
    "swapaxes": (3, lambda x: x.swapaxes(1, 0)),
    "swapdims": (3, lambda x: x.swapdims(-1, -2)),
    "movedim": (3, lambda x: x.movedim(0, -1)),
    "moveaxis": (3, lambda x: x.moveaxis((0, 1), (1, 2))),
    "permute": (3, lambda x: x.permute(2, 0, 1)),
    "ravel": (1, torch.ravel),
    "unsqueeze": (2, lambda x: x.unsqueeze(-2)),
    "squeeze": (2, lambda x: x[None].squeeze(0)),
}


@pytest.mark.parametrize("name", sorted(TURNED))
@square(*TURNED, examples=8)
def test_turned(case: Case, name: str) -> None:
    rank, function = TURNED[name]
    shape = case.shape(rank, 1, 4)
    case.check(lambda m: function(m.x), x=case.tensor(*shape), cut=_all(shape))


@square("transpose", "squeeze", "unsqueeze")
def test_turned_in_place(case: Case) -> None:
    n, c = case.shape(2, 1, 4)
    x = case.tensor(n, c)
    case.check(lambda m: m.x.clone().transpose_(0, 1).unsqueeze_(0).squeeze_(0), x=x, cut="x:0 x:1")


@square("permute", examples=20)
def test_permute(case: Case) -> None:
    shape = case.shape(case.size(2, 4), 1, 4)
    order = [d - len(shape) * case.flip() for d in torch.randperm(len(shape)).tolist()]
    spell = case.of(lambda x: x.permute(order), lambda x: x.permute(*order), lambda x: torch.permute(x, order))
    case.check(lambda m: spell(m.x), x=case.tensor(*shape), cut=_all(shape))


# -- views -------------------------------------------------------------------------------------------


@square("view", "reshape", examples=80)
def test_view_and_reshape(case: Case) -> None:
    shape = case.shape(case.size(1, 3), 1, 6)
    sizes = _factors(case, math.prod(shape))
    names = {f"s{i}": size for i, size in enumerate(sizes)}
    inferred = case.size(-1, len(sizes) - 1)

    def view(m: Any) -> Any:
        given = [-1 if i == inferred else getattr(m, name) for i, name in enumerate(names)]
        return m.x.contiguous().view(*given) if method == "view" else m.x.reshape(given)

    method = case.of("view", "reshape")
    case.check(view, x=case.tensor(*shape), **names)


@square("view", "permute", "reshape")
def test_heads_there_and_back(case: Case) -> None:
    b, t, h, d = case.shape(4, 1, 4)
    case.check(
        lambda m: m.x.view(b, t, m.h, m.d).permute(0, 2, 1, 3).transpose(1, 2).reshape(b, t, -1),
        x=case.tensor(b, t, h * d),
        h=h,
        d=d,
        dress=False,
    )


@square("view", must_cut=False)
def test_view_with_a_literal_size_keeps_it(case: Case) -> None:
    c = case.size(2, 5)
    case.check(lambda m: m.x.view(c, 1), x=case.tensor(c), stays={"x:0": "view"}, dress=False)


@square("flatten", examples=30)
def test_flatten(case: Case) -> None:
    shape = case.shape(case.size(2, 4), 1, 4)
    start = case.size(0, len(shape) - 1)
    stop = case.size(start, len(shape) - 1) - len(shape) * case.flip()
    case.check(lambda m: m.x.flatten(start, stop), x=case.tensor(*shape), cut=_all(shape))


@square("unflatten", examples=30)
def test_unflatten(case: Case) -> None:
    a, b = case.shape(2, 1, 4)
    shape = list(case.shape(case.size(1, 3), 1, 3))
    dim = case.dim(len(shape))
    shape[dim] = a * b
    if case.flip():
        case.check(lambda m: m.x.unflatten(dim, (m.a, m.b)), x=case.tensor(*shape), a=a, b=b)
    else:
        case.check(lambda m: m.x.unflatten(dim, (m.a, -1)), x=case.tensor(*shape), a=a)


@pytest.mark.parametrize("name", ["view_as", "reshape_as"])
@square("view_as", "reshape_as", examples=20)
def test_the_shape_of_another(case: Case, name: str) -> None:
    n, a, b = case.shape(3, 1, 4)
    x, y = case.tensor(n, a * b), case.tensor(n, a, b)
    case.check(lambda m: getattr(m.x.clone(), name)(m.y), x=x, y=y, dress=False)


# -- spread ------------------------------------------------------------------------------------------


@square("expand", "broadcast_to", examples=40)
def test_expand(case: Case) -> None:
    n, c, k = case.size(2, 3), case.size(2, 4), case.size(2, 3)
    spread = case.of(
        lambda m: m.x.expand(k, m.n, m.c),
        lambda m: m.x.expand(k, -1, -1),
        lambda m: m.x[:, None].expand(-1, m.k, -1),
        lambda m: m.x[:, None].expand(-1, k, m.c),
        lambda m: torch.broadcast_to(m.x, (k, m.n, m.c)),
        lambda m: m.x[None].expand(m.k, *m.x.shape),
    )
    case.check(spread, x=case.tensor(n, c), n=n, c=c, k=k, cut="x:0 x:1")


@square("expand", "mul")
def test_expand_to_a_width_that_shrinks(case: Case) -> None:
    n, c = case.shape(2, 2, 4)
    x, y = case.tensor(n, 1), case.tensor(n, c)
    case.check(lambda m: m.x.expand(-1, m.y.shape[1]) * m.y, x=x, y=y, cut="x:0 y:0 y:1")


@square("expand_as", examples=30)
def test_expand_as(case: Case) -> None:
    n, c = case.shape(2, 2, 4)
    shape = case.of((n, c), (n, 1), (1, c), (c,), (1,))
    case.check(lambda m: m.x.expand_as(m.y) * 2, x=case.tensor(*shape), y=case.tensor(n, c))


@square("expand_as")
def test_normalize(case: Case) -> None:
    n, c = case.shape(2, 2, 4)
    dim = case.dim(2)
    case.check(lambda m: F.normalize(m.x, dim=dim), x=case.signed(n, c))


@square("repeat", "tile", examples=60)
def test_repeat_and_tile(case: Case) -> None:
    shape = case.shape(case.size(1, 3), 1, 4)
    times = [case.size(1, 3) for _ in range(case.size(len(shape), 3))]
    repeat = case.of(torch.Tensor.repeat, torch.tile)
    tracked = {f"k{i}": k for i, k in enumerate(times)} if case.flip() else {}
    case.check(
        lambda m: repeat(m.x, tuple(getattr(m, name) for name in tracked) or tuple(times)),
        x=case.tensor(*shape),
        **tracked,
    )


@square("repeat_interleave", examples=30)
def test_repeat_interleave(case: Case) -> None:
    shape, k = case.shape(case.size(1, 3), 1, 4), case.size(1, 3)
    dim = case.dim(len(shape))
    case.check(lambda m: m.x.repeat_interleave(k, dim), x=case.tensor(*shape), cut=_all(shape))


@pytest.mark.xfail(reason="pins more than it must", strict=False)
@square("repeat_interleave")
def test_repeat_interleave_by_a_table_keeps_the_dimension(case: Case) -> None:
    n, c = case.shape(2, 2, 4)
    repeats = torch.arange(c) % 3 + 1
    case.check(
        lambda m: m.x.repeat_interleave(m.repeats, 1),
        x=case.tensor(n, c),
        repeats=repeats,
        cut="x:0",
        stays={"x:1": "repeat_interleave"},
    )


@square("repeat_interleave", "matmul")
def test_grouped_query_attention(case: Case) -> None:
    kv, k, t, d = case.size(1, 3), case.size(1, 3), case.size(1, 3), case.size(2, 3)
    case.check(
        lambda m: m.q @ m.k.repeat_interleave(k, 0).mT,
        q=case.tensor(kv * k, t, d),
        k=case.tensor(kv, t, d),
        cut="q:2 k:2 k:0",
    )


# -- places that matter ------------------------------------------------------------------------------


@square("roll", examples=30)
def test_roll(case: Case) -> None:
    shape = case.shape(case.size(1, 3), 2, 4)
    dims = case.of((0,), (-1,), (0, -1)) if len(shape) > 1 else (0,)
    shifts = tuple(case.size(1, 2) for _ in dims)
    single = len(dims) == 1 and case.flip()
    case.check(
        lambda m: m.x.roll(shifts[0], dims[0]) if single else torch.roll(m.x, shifts, dims),
        x=case.tensor(*shape),
        cut=_all(shape, dims),
        stays={f"x:{d % len(shape)}": "roll" for d in dims},
    )


@square("roll", must_cut=False)
def test_roll_of_everything(case: Case) -> None:
    n, c = case.shape(2, 2, 4)
    case.check(lambda m: m.x.roll(1), x=case.tensor(n, c), stays={"x:0": "roll", "x:1": "roll"})


@square("rot90")
def test_rot90(case: Case) -> None:
    n, h, w = case.shape(3, 2, 4)
    k, dims = case.size(-2, 3), case.of((1, 2), (2, 1), (-2, -1))
    stays = {"x:1": "rot90", "x:2": "rot90"}
    case.check(lambda m: torch.rot90(m.x, k, dims), x=case.tensor(n, h, w), cut="x:0", stays=stays)


@square("unfold", examples=30)
def test_unfold(case: Case) -> None:
    shape = case.shape(case.size(1, 3), 3, 5)
    dim, size, step = case.dim(len(shape)), case.size(1, 3), case.size(1, 2)
    along = dim % len(shape)
    case.check(
        lambda m: m.x.unfold(dim, size, step),
        x=case.tensor(*shape),
        cut=_all(shape, (dim,)),
        stays={f"x:{along}": "unfold"},
    )


@square("index_select", examples=20)
def test_index_select(case: Case) -> None:
    shape = case.shape(case.size(1, 3), 2, 4)
    dim = case.dim(len(shape))
    index = torch.randint(shape[dim], (case.size(1, 4),))
    stays = {f"x:{dim % len(shape)}": "index_select"}
    case.check(
        lambda m: m.x.index_select(dim, m.index),
        x=case.tensor(*shape),
        index=index,
        cut=_all(shape, (dim,)),
        stays=stays,
    )


@square("take_along_dim", examples=30)
def test_take_along_dim(case: Case) -> None:
    n, c, k = case.shape(3, 2, 4)
    index = torch.randint(c, (case.of(1, n), k))
    cut = "x:0" if len(index) == 1 else ""
    stays = {"x:1": "take_along_dim"}
    case.check(lambda m: torch.take_along_dim(m.x, m.index, 1), x=case.tensor(n, c), index=index, cut=cut, stays=stays)


@pytest.mark.xfail(reason="ties rows that it need not tie", strict=False)
@square("tril", "triu", examples=20)
def test_triangles(case: Case) -> None:
    n, h, w = case.shape(3, 2, 4)
    op, k = case.of(torch.tril, torch.triu), case.of(-1, 0, 1)
    stays = {"x:1": op.__name__, "x:2": op.__name__}
    case.check(lambda m: op(m.x, k), x=case.tensor(n, h, w), cut="x:0", stays=stays)


@square("diagonal", examples=20)
def test_diagonal(case: Case) -> None:
    n, h, w = case.shape(3, 2, 4)
    offset = case.of(0, 0, 1, -1)
    case.check(lambda m: m.x.diagonal(offset, 1, 2), x=case.tensor(n, h, w), cut="x:0")


# -- pixels and channels -----------------------------------------------------------------------------


@square("pixel_shuffle", examples=30)
def test_pixel_shuffle(case: Case) -> None:
    lead, c, r = case.of((), (2,)), case.size(1, 3), case.size(1, 2)
    shape = (*lead, c * r * r, 2, 2)
    case.check(lambda m: F.pixel_shuffle(m.x, r), x=case.tensor(*shape), cut="x:0" if lead or c > 1 else "")


@square("pixel_unshuffle", examples=30)
def test_pixel_unshuffle(case: Case) -> None:
    lead, c, r = case.of((), (2,)), case.size(1, 3), case.size(1, 2)
    shape = (*lead, c, 2 * r, 2 * r)
    case.check(lambda m: F.pixel_unshuffle(m.x, r), x=case.tensor(*shape), cut=f"x:{len(lead)}")


@square("channel_shuffle", examples=30)
def test_channel_shuffle(case: Case) -> None:
    n, groups, c = case.size(1, 2), case.size(1, 3), case.size(1, 4)
    x = case.tensor(n, groups * c, 2, 2)
    case.check(lambda m: F.channel_shuffle(m.x, groups), x=x)


@square("view", "transpose", "reshape", "conv2d", examples=20)
def test_channel_shuffle_by_hand(case: Case) -> None:
    groups, c, o = case.size(1, 3), case.size(2, 3), case.size(2, 3)
    n = 2
    x, w = case.tensor(n, groups * c, 2, 2), case.tensor(o, groups * c, 1, 1)
    case.check(
        lambda m: F.conv2d(m.x.view(n, m.g, -1, 2, 2).transpose(1, 2).reshape(n, -1, 2, 2), m.w, None, 1, 0, 1, 1),
        x=x,
        w=w,
        g=groups,
        dress=False,
        cut="x:1 w:0",
    )


# -- taken apart -------------------------------------------------------------------------------------


@square("unbind", examples=20)
def test_unbind(case: Case) -> None:
    shape = case.shape(case.size(2, 3), 2, 4)
    dim = case.dim(len(shape))
    case.check(
        lambda m: m.x.unbind(dim), x=case.tensor(*shape), cut=_all(shape, (dim,)), stays={f"x:{dim % len(shape)}": ""}
    )


@square("view_as_complex", "view_as_real", examples=30)
def test_pairs_of_numbers(case: Case) -> None:
    n, c = case.shape(2, 2, 4)
    turn = torch.complex(torch.tensor(0.6), torch.tensor(0.8))
    op = case.of(
        lambda x: torch.view_as_complex(x) * turn, lambda x: torch.view_as_real(torch.view_as_complex(x) * turn)
    )
    case.check(lambda m: op(m.x), x=case.tensor(n, c, 2), dress=False, cut="x:0 x:1", stays={"x:2": ""})


@square("unsafe_chunk", "unsafe_split", examples=30)
def test_unsafe_pieces(case: Case) -> None:
    n, c = case.size(2, 4), case.size(2, 4)
    op = case.of(lambda m: m.x.unsafe_chunk(2, 1), lambda m: m.x.unsafe_split(m.c, 1))
    case.check(op, x=case.tensor(n, 2 * c), c=c, cut="x:0 x:1")


@square("chunk", examples=40)
def test_chunk(case: Case) -> None:
    shape = list(case.shape(case.size(1, 3), 1, 4))
    dim, count = case.dim(len(shape)), case.size(1, 3)
    shape[dim] = case.of(shape[dim] * count, shape[dim])
    spell = case.of(lambda x: x.chunk(count, dim), lambda x: torch.chunk(x, count, dim=dim))
    case.check(lambda m: spell(m.x), x=case.tensor(*shape), cut=_all(tuple(shape), (dim,)))


@square("split", "split_with_sizes", examples=60)
def test_split(case: Case) -> None:
    shape = list(case.shape(case.size(1, 3), 1, 4))
    dim, sizes = case.dim(len(shape)), [case.size(1, 4) for _ in range(case.size(1, 3))]
    shape[dim] = sum(sizes)
    names = {f"s{i}": size for i, size in enumerate(sizes)}
    split = case.of(torch.Tensor.split, torch.split, torch.split_with_sizes)
    case.check(
        lambda m: split(m.x, [getattr(m, name) for name in names], dim=dim),
        x=case.tensor(*shape),
        cut=_all(tuple(shape), (dim,)),
        **names,
    )


@square("split", examples=40)
def test_split_into_pieces_of_a_size(case: Case) -> None:
    shape = list(case.shape(case.size(1, 3), 1, 3))
    dim, size, count = case.dim(len(shape)), case.size(1, 3), case.size(1, 3)
    shape[dim] = size * count + case.of(0, 0, 1)
    case.check(lambda m: m.x.split(m.size, dim), x=case.tensor(*shape), size=size, cut=_all(tuple(shape), (dim,)))


@square("tensor_split", examples=40)
def test_tensor_split(case: Case) -> None:
    shape = list(case.shape(case.size(1, 3), 1, 4))
    dim, sizes = case.dim(len(shape)), [case.size(1, 3) for _ in range(case.size(1, 3))]
    shape[dim] = sum(sizes)
    names = {f"s{i}": sum(sizes[: i + 1]) for i in range(len(sizes) - 1)}
    case.check(
        lambda m: m.x.tensor_split([getattr(m, name) for name in names], dim=dim),
        x=case.tensor(*shape),
        cut=_all(tuple(shape), (dim,)),
        **names,
    )


@square("tensor_split", examples=30)
def test_tensor_split_into_sections(case: Case) -> None:
    shape = list(case.shape(case.size(1, 3), 1, 3))
    dim, count = case.dim(len(shape)), case.size(1, 3)
    shape[dim] = count * case.size(1, 3) + case.of(0, 0, 1)
    case.check(lambda m: torch.tensor_split(m.x, count, dim), x=case.tensor(*shape), cut=_all(tuple(shape), (dim,)))


@square("chunk", "linear", "mul")
def test_halves_of_a_linear(case: Case) -> None:
    i, h = case.shape(2, 2, 4)

    def gate(m: Any, x: Any) -> Any:
        a, b = F.linear(x, m.w).chunk(2, -1)
        return a * b.sigmoid()

    case.check(gate, inputs=(case.tensor(2, i),), w=case.tensor(2 * h, i), cut="w:0")


@square("split", "conv2d", "cat")
def test_split_transform_and_join(case: Case) -> None:
    a, b, o = case.shape(3, 1, 4)
    assume(a > 1 or b > 1)
    operands = {"stem": case.tensor(a + b, 2, 1, 1), "w": case.tensor(o, b, 1, 1), "head": case.tensor(3, a + o, 1, 1)}

    def block(m: Any, x: Any) -> Any:
        left, right = torch.split(_conv(x, m.stem), (m.a, m.b), 1)
        return _conv(torch.cat([left, _conv(right, m.w)], 1), m.head)

    case.check(block, inputs=(case.tensor(1, 2, 2, 2),), a=a, b=b, dress=False, cut="head:0", **operands)


def _conv(x: Any, w: Any) -> Any:
    return F.conv2d(x, w, None, 1, 0, 1, 1)
