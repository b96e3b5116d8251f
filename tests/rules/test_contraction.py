"""Squares of the ops that combine operands along named dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn

import surgeon
from tests.rules.harness import Case, square

# A public function since torch 2.10.
_GROUPED: Callable[..., Any] = getattr(F, "grouped_mm", None) or torch._grouped_mm
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@square("linear", examples=30)
def test_linear(case: Case) -> None:
    *lead, i, o = case.shape(case.size(2, 4))
    x, w, b = case.tensor(*lead, i), case.tensor(o, i), case.tensor(o)
    if case.flip():
        case.check(lambda m: F.linear(m.x, m.w, m.b), x=x, w=w, b=b, cut="w:0 w:1 b:0")
    else:
        case.check(lambda m: F.linear(m.x, m.w), x=x, w=w, cut="w:0 w:1")


@square("linear")
def test_linear_of_an_input(case: Case) -> None:
    n, i, o = case.shape(3)
    x, w, b = case.tensor(n, i), case.tensor(o, i), case.tensor(o)
    case.check(lambda m, x: F.linear(x, m.w, m.b), inputs=(x,), w=w, b=b, cut="w:0 b:0", stays={"w:1": ""})


@square("linear")
def test_linear_twice(case: Case) -> None:
    n, i, h, o = case.shape(4)
    x, a, b = case.tensor(n, i), case.tensor(h, i), case.tensor(o, h)
    case.check(lambda m: F.linear(F.linear(m.x, m.a), m.b), x=x, a=a, b=b, cut="x:1 a:0 a:1 b:0 b:1")


@square("linear")
def test_linear_tied_with_itself(case: Case) -> None:
    n, i = case.shape(2)
    x, w = case.tensor(n, i), case.tensor(i, i)
    case.check(lambda m: F.linear(F.linear(m.x, m.w), m.w), x=x, w=w, cut="x:1 w:0 w:1")


@square("conv1d", "conv2d", "conv3d", examples=40)
def test_convolution(case: Case) -> None:
    rank, groups = case.size(1, 3), case.size(1, 3)
    n, i, o, k = case.size(1, 3), case.size(1, 3), case.size(1, 3), case.size(1, 2)
    stride, pad = case.size(1, 2), case.size(0, 1)
    x = case.tensor(*([n] if case.flip() else []), groups * i, *[3] * rank)
    w, b = case.tensor(groups * o, i, *[k] * rank), case.tensor(groups * o) if case.flip() else None
    case.check(
        lambda m: CONVOLUTIONS[rank](m.x, m.w, m.b, stride, pad, 1, m.groups),
        x=x,
        w=w,
        b=b,
        groups=groups,
        stays={f"x:{x.dim() - 1}": f"conv{rank}d"},
    )


@square("conv1d", "conv2d", "conv3d")
def test_depthwise_convolution(case: Case) -> None:
    rank, c, multiplier = case.size(1, 3), case.size(2, 6), case.size(1, 3)
    x, w = case.tensor(2, c, *[3] * rank), case.tensor(c * multiplier, 1, *[2] * rank)
    cut = "x:0 x:1 w:0" if multiplier == 1 else "x:0 x:1"
    case.check(lambda m: CONVOLUTIONS[rank](m.x, m.w, groups=m.groups), x=x, w=w, groups=c, cut=cut)


@square("conv2d")
def test_convolutions_in_a_row(case: Case) -> None:
    i, h, o, groups = case.size(1, 3), case.size(1, 4), case.size(1, 3), case.size(1, 3)
    x, a = case.tensor(2, i, 3, 3), case.tensor(h * groups, i, 2, 2)
    b, c = case.tensor(o * groups, h, 1, 1), case.tensor(2, o * groups, 1, 1)
    case.check(
        lambda m: F.conv2d(F.conv2d(F.conv2d(m.x, m.a), m.b, groups=m.groups), m.c),
        x=x,
        a=a,
        b=b,
        c=c,
        groups=groups,
        dress=False,
        cut="x:1 a:1 c:0",
    )


@square("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", examples=40)
def test_transposed_convolution(case: Case) -> None:
    rank, groups, i, o = case.size(1, 3), case.size(1, 3), case.size(1, 3), case.size(1, 3)
    x = case.tensor(*([2] if case.flip() else []), groups * i, *[2] * rank)
    w, b = case.tensor(groups * i, o, *[2] * rank), case.tensor(groups * o) if case.flip() else None
    stride, extra = case.of((1, 0), (2, 1), (2, 0))
    case.check(lambda m: TRANSPOSED[rank](m.x, m.w, m.b, stride, 0, extra, m.groups), x=x, w=w, b=b, groups=groups)


@square("conv_transpose2d", "conv2d")
def test_transposed_convolution_between_others(case: Case) -> None:
    i, h, o, groups = case.size(1, 3), case.size(2, 3), case.size(1, 3), case.size(1, 3)
    x, a = case.tensor(1, i, 2, 2), case.tensor(groups * h, i, 1, 1)
    b, c = case.tensor(groups * h, o, 2, 2), case.tensor(3, groups * o, 1, 1)
    case.check(
        lambda m: F.conv2d(F.conv_transpose2d(F.conv2d(m.x, m.a), m.b, groups=m.groups), m.c),
        x=x,
        a=a,
        b=b,
        c=c,
        groups=groups,
        dress=False,
        cut="x:1 a:1 c:0",
    )


def _broadcast(case: Case, lead: tuple[int, ...]) -> tuple[int, ...]:
    """Drop leading dimensions, or make some 1."""
    kept = lead[case.size(0, len(lead)) :]
    return tuple(case.of(1, size) for size in kept)


@square("matmul", examples=60)
def test_matmul(case: Case) -> None:
    m, k, n = case.shape(3)
    lead = case.shape(case.size(0, 2), 1, 3)
    left = (k,) if case.flip() else (*_broadcast(case, lead), m, k)
    right = (k,) if case.flip() else (*_broadcast(case, lead), k, n)
    a, b = case.tensor(*left), case.tensor(*right)
    multiply = case.of(torch.matmul, lambda a, b: a @ b, lambda a, b: a.matmul(b))
    case.check(lambda m: multiply(m.a, m.b), a=a, b=b, cut=f"a:{len(left) - 1} b:{max(len(right) - 2, 0)}")


@square("bmm")
def test_bmm(case: Case) -> None:
    b, m, k, n = case.shape(4)
    cut = "x:0 x:1 x:2 y:0 y:1 y:2"
    case.check(lambda s: torch.bmm(s.x, s.y), x=case.tensor(b, m, k), y=case.tensor(b, k, n), cut=cut)


@square("mm", "mv", "dot", "outer", examples=40)
def test_products_of_matrices_and_vectors(case: Case) -> None:
    m, k, n = case.shape(3)
    op, a, b, cut = case.of(
        (torch.mm, (m, k), (k, n), "a:0 a:1 b:0 b:1"),
        (torch.mv, (m, k), (k,), "a:0 a:1 b:0"),
        (torch.dot, (k,), (k,), "a:0 b:0"),
        (torch.outer, (m,), (n,), "a:0 b:0"),
    )
    case.check(lambda s: op(s.a, s.b), a=case.tensor(*a), b=case.tensor(*b), cut=cut)


@square("addmm", "baddbmm", "addbmm", examples=30)
def test_products_with_a_sum(case: Case) -> None:
    b, m, k, n = case.shape(4)
    op, c, left, right = case.of(
        (torch.addmm, (m, n), (m, k), (k, n)),
        (torch.addmm, (n,), (m, k), (k, n)),
        (torch.baddbmm, (b, m, n), (b, m, k), (b, k, n)),
        (torch.addbmm, (m, n), (b, m, k), (b, k, n)),
    )
    alpha = case.of(1, 0.5)
    operands = {"c": case.tensor(*c), "x": case.tensor(*left), "y": case.tensor(*right)}
    rank = len(left)
    case.check(lambda s: op(s.c, s.x, s.y, beta=2, alpha=alpha), cut=f"x:{rank - 1} y:{rank - 2}", **operands)


@square("bilinear")
def test_bilinear(case: Case) -> None:
    b, i, j, o = case.shape(4)
    operands = {"x": case.tensor(b, i), "y": case.tensor(b, j), "w": case.tensor(o, i, j), "b": case.tensor(o)}
    case.check(lambda m: F.bilinear(m.x, m.y, m.w, m.b), cut="x:1 y:1 w:0 w:1 w:2 b:0", **operands)


EQUATIONS = """
ij,jk->ik    ij,jk    bij,bjk->bik    bhqd,bhkd->bhqk    bhqk,bhkd->bqhd    i,j->ij    ij->ji    ij->    ij->i    bij->bj
ij,ij->    ij,kj,lj->ikl    b i d, b j d -> b i j    ...ij,jk->...ik    ...i,...i->...    ...ij->...ji    nhd,hde->ne    ij,j
bchw,co->bohw    ...c,oc->...o    ijk,kl,lm->ijm
""".split("    ")
EQUATIONS = [equation for part in EQUATIONS for equation in part.strip().split("\n")]


@square("einsum", examples=100)
def test_einsum(case: Case) -> None:
    equation = case.of(*EQUATIONS)
    lead = case.shape(case.size(0, 2), 1, 3)
    sizes = {letter: case.size(1, 4) for letter in sorted(set(equation)) if letter.isalpha()}
    shapes = []
    for term in equation.replace(" ", "").partition("->")[0].split(","):
        letters = tuple(sizes[letter] for letter in term.replace(".", ""))
        shapes.append((_broadcast(case, lead) if "..." in term else ()) + letters)
    names = [f"x{i}" for i in range(len(shapes))]
    case.check(
        lambda m: torch.einsum(equation, *(getattr(m, name) for name in names)),
        **{name: case.tensor(*shape) for name, shape in zip(names, shapes)},
    )


@square("einsum", must_cut=False)
def test_einsum_with_a_diagonal_is_unknown(case: Case) -> None:
    n, i = case.shape(2, 2)
    case.check(lambda m: torch.einsum("nii->ni", m.x), x=case.tensor(n, i, i), dress=False, stays={"x:1": "diagonal"})


# -- norms -------------------------------------------------------------------------------------------


@square("batch_norm", "instance_norm", examples=40)
def test_batch_and_instance_norm(case: Case) -> None:
    rank, n, c = case.size(0, 3), case.size(1, 3), case.size(2, 6)
    op = F.batch_norm if rank == 0 or case.flip() else F.instance_norm
    batch = op is F.batch_norm
    affine, tracked = case.flip(), batch
    operands = {"x": case.tensor(n, c, *[3] * rank)}
    operands |= {"w": case.tensor(c), "b": case.tensor(c)} if affine else {"w": None, "b": None}
    operands |= {"mean": case.tensor(c), "var": case.tensor(c)} if tracked else {"mean": None, "var": None}
    cut = "x:0 x:1" + (" w:0 b:0" if affine else "") + (" mean:0 var:0" if tracked else "")
    case.check(lambda m: op(m.x, m.mean, m.var, m.w, m.b), cut=cut, **operands)


class BatchNorm(nn.Module):
    """A batch norm behind a convolution, with the buffers of the real layer."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(i, o, 1), nn.BatchNorm2d(o)


@square("group_norm", examples=40)
def test_group_norm(case: Case) -> None:
    rank, groups, c = case.size(0, 2), case.size(1, 3), case.size(1, 4)
    assume(c * 3**rank > 1)
    operands = {"x": case.signed(2, groups * c, *[3] * rank)}
    operands |= {"w": case.tensor(groups * c), "b": case.tensor(groups * c)} if case.flip() else {"w": None, "b": None}
    case.check(lambda m: torch.group_norm(m.x, m.groups, m.w, m.b), groups=groups, cut="x:0", **operands)


@square("layer_norm", "rms_norm", examples=60)
def test_layer_and_rms_norm(case: Case) -> None:
    shape = case.shape(case.size(1, 3), 2, 5)
    rank = case.size(1, len(shape))
    tail, names = shape[-rank:], [f"s{i}" for i in range(rank)]
    sizes = dict(zip(names, tail))
    w = case.tensor(*tail) if case.flip() else None
    b = case.tensor(*tail) if case.flip() else None
    x = case.signed(*shape)

    def layer(m):  # type: ignore[no-untyped-def]
        return F.layer_norm(m.x, [getattr(m, name) for name in names], m.w, m.b)

    def rms(m):  # type: ignore[no-untyped-def]
        return F.rms_norm(m.x, [getattr(m, name) for name in names], m.w)

    cut = " ".join(f"x:{d}" for d in range(len(shape)))
    if case.flip():
        case.check(layer, x=x, w=w, b=b, cut=cut, **sizes)
    else:
        case.check(rms, x=x, w=w, cut=cut, **sizes)


@square("layer_norm")
def test_layer_norm_with_literal_sizes_keeps_them(case: Case) -> None:
    n, c = case.shape(2, 2)
    case.check(lambda m: F.layer_norm(m.x, [c]), x=case.signed(n, c), cut="x:0", stays={"x:1": "layer_norm"})


@square("prelu")
def test_prelu(case: Case) -> None:
    n, c, rank = case.size(1, 3), case.size(2, 5), case.size(0, 2)
    if case.flip():
        operands = {"x": case.signed(n, c, *[3] * rank), "w": case.tensor(c)}
        case.check(lambda m: F.prelu(m.x, m.w), cut="x:0 x:1 w:0", **operands)
    else:
        case.check(lambda m: F.prelu(m.x, m.w), x=case.signed(n, c, *[3] * rank), w=case.tensor(1), cut="x:0 x:1")


# -- lookups and attention ---------------------------------------------------------------------------


@square("embedding")
def test_embedding(case: Case) -> None:
    rows, e, shape = case.size(2, 5), case.size(2, 5), case.shape(case.size(1, 2), 1, 3)
    index = torch.randint(rows, shape)
    case.check(lambda m: F.embedding(m.index, m.w), index=index, w=case.tensor(rows, e), cut="w:1", stays={"w:0": ""})


@square("embedding", "add", "linear")
def test_embeddings_added(case: Case) -> None:
    rows, t, e, o = case.shape(4, 2, 4)
    operands = {"w": case.tensor(rows, e), "p": case.tensor(1, t, e), "head": case.tensor(o, e)}
    index = torch.randint(rows, (2, t))
    case.check(
        lambda m: F.linear(F.embedding(m.index, m.w) + m.p, m.head),
        index=index,
        cut="w:1 p:2 head:0 head:1",
        stays={"p:1": ""},
        dress=("p", "head"),
        **operands,
    )


@square("scaled_dot_product_attention", examples=40)
def test_attention(case: Case) -> None:
    h, t, s, d, v = case.size(1, 3), case.size(1, 3), case.size(1, 3), case.size(2, 4), case.size(2, 4)
    lead = (2, h) if case.flip() else (h,)
    scale = case.of(None, 0.5)
    operands = {"q": case.signed(*lead, t, d), "k": case.signed(*lead, s, d), "v": case.signed(*lead, s, v)}
    mask = case.of(None, (t, s), (h, t, s), (h, 1, 1), (1, s))
    operands["mask"] = None if mask is None else case.signed(*mask)
    last = len(lead) + 1
    case.check(
        lambda m: F.scaled_dot_product_attention(m.q, m.k, m.v, attn_mask=m.mask, scale=scale),
        cut=f"v:{last} v:{last - 2} q:{last - 2}" + (f" q:{last} k:{last}" if scale else ""),
        stays={}
        if scale
        else {f"q:{last}": "scaled_dot_product_attention", f"k:{last}": "scaled_dot_product_attention"},
        **operands,
    )


@square("linear", "view", "unbind", "transpose", "matmul", "softmax", "reshape", examples=30)
def test_fused_attention(case: Case) -> None:
    h, d, t, c = case.size(1, 3), case.size(2, 3), case.size(1, 3), case.size(2, 3)
    operands = {"qkv": case.signed(3 * h * d, c), "proj": case.signed(c, h * d), "b": case.signed(3 * h * d)}

    def attend(m, x):  # type: ignore[no-untyped-def]
        q, k, v = F.linear(x, m.qkv, m.b).view(2, t, 3, m.h, m.d).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return F.linear((weights @ v).transpose(1, 2).reshape(2, t, m.h * m.d), m.proj)

    case.check(attend, inputs=(case.signed(2, t, c),), h=h, d=d, dress=False, **operands)


@square("weight_norm", must_cut=True)
def test_weight_norm(case: Case) -> None:
    o, i = case.shape(2, 2)
    case.check(lambda m: torch._weight_norm(m.v, m.g, 0), v=case.signed(o, i), g=case.tensor(o, 1))


@pytest.mark.parametrize("rank", [1, 2, 3])
@square("linear")
def test_leading_dimensions_pass_through(case: Case, rank: int) -> None:
    shape = case.shape(rank, 2, 3)
    cut = " ".join(f"x:{d}" for d in range(rank + 1))
    case.check(lambda m: F.linear(m.x, m.w), x=case.tensor(*shape, 3), w=case.tensor(2, 3), cut=cut)


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@square("cdist", examples=40)
def test_distances(case: Case) -> None:
    lead = case.shape(case.size(0, 1), 1, 3)
    p, r, m = case.shape(3, 2, 4)
    make = case.of(lambda x: x, torch.Tensor.exp)  # of parameters, and of what is not zero where they are
    x, y = case.signed(*lead, p, m), case.signed(*lead, r, m)
    last = len(lead)
    cut = f"x:{last} x:{last + 1} y:{last} y:{last + 1}"
    case.check(lambda s: torch.cdist(make(s.x), s.y), x=x, y=y, cut=cut)


@square("tensordot", examples=40)
def test_tensordot(case: Case) -> None:
    a, b, k, l = case.shape(4)
    x, y, over = case.of(
        ((a, k, l), (k, l, b), 2), ((k, a, l), (l, b, k), ([0, 2], [2, 0])), ((a, k), (k, b), 1), ((a,), (b,), 0)
    )
    case.check(lambda m: torch.tensordot(m.x, m.y, over), x=case.signed(*x), y=case.signed(*y), cut="x:0 y:0")


@square("grouped_mm", examples=30)
def test_products_by_expert(case: Case) -> None:
    experts, i, o = case.size(2, 3), 4 * case.size(1, 4), 4 * case.size(1, 4)
    offsets = torch.linspace(2, 8, experts).to(torch.int32)
    x, w = (2 * case.signed(8, i)).round(), (2 * case.signed(experts, i, o)).round()  # exact in float32
    stays = {"x:0": "grouped_mm", "w:0": "grouped_mm"}
    transposed = case.flip()

    def run(m: Any, offsets: Any) -> Any:
        weight = m.w.transpose(-2, -1) if transposed else m.w
        return _GROUPED(m.x.float(), weight.float(), offs=offsets).double()

    w = w.transpose(1, 2).contiguous() if transposed else w
    case.check(run, inputs=(offsets,), x=x, w=w, dress=False, stays=stays)


class GroupedQueries(nn.Module):
    """Four query heads for two key heads; another backend would repeat keys by the number kept here."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.repeats = 8, 2
        self.q, self.k, self.v = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(16, 16)
        self.out = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens = x.shape[:2]
        q, k, v = (layer(x).view(batch, tokens, -1, self.width).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))


@pytest.mark.parametrize("heads", [False, True, "both"])
def test_queries_for_each_key_stay_as_many(heads: bool | str) -> None:
    result = surgeon.prune(
        GroupedQueries(), torch.randn(2, 5, 16), ratio=0.5, scope="local", criterion="random", heads=heads
    )
    small = result.model
    assert small.q.out_features == 2 * small.k.out_features < 32
    assert small.repeats == 2


@pytest.mark.parametrize("groups", [1, 2])
def test_inputs_of_transposed_convolutions_are_no_filters_of_theirs(groups: int) -> None:
    """A limit on a layer's filters leaves those of the layer before it alone."""
    layers = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 3, groups=groups), nn.Conv2d(6, 2, 1)
    model, x = nn.Sequential(*layers).eval(), torch.randn(1, 3, 6, 6)
    graph = surgeon.trace(model, x)
    sides = {str(m): m.sides for group in graph.free for m in group.members}
    assert all(side == {"in"} for place, side in sides.items() if place == "1.weight dim 0")
    plan = surgeon.plan(graph, surgeon.score(graph, "l1"), ratio=0.5, scope="local", groups={"1": 0.0})
    small = surgeon.operate(model, plan)
    assert small[1].out_channels == 6 and small[0].out_channels == 4
