"""Squares of the ops that work position by position, and of their kin: softmax, running sums, gated linear units."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.rules.harness import Case, square

# Ops of one tensor that are found under their own name in one of these.
SPACES = (torch.Tensor, torch, F, torch._C._nn)
UNARY = """
abs absolute acos acosh alpha_dropout angle arccos arccosh arcsin arcsinh arctan arctanh asin asinh atan atanh bool ceil celu
clone contiguous cos cosh cpu deg2rad detach digamma double elu erf erfc erfinv exp exp2 expm1 fix floor frac gelu
hardshrink hardsigmoid hardswish hardtanh i0 int isfinite isinf isnan leaky_relu lgamma log log10 log1p log2 log_sigmoid
logical_not logit long mish nan_to_num neg negative positive rad2deg real reciprocal relu relu6 round rrelu rsqrt selu
sgn sigmoid sign silu sin sinc sinh softplus softshrink sqrt square tan tanh trunc float
""".split()

# Ops of one tensor that need more than their name.
SPELLED: dict[str, Callable[[Any], Any]] = {
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, False),
    "bfloat16": lambda x: x.bfloat16().double(),
    "bitwise_not": lambda x: (x > 0.5).bitwise_not(),
    "conj": lambda x: torch.complex(x, x).conj().imag,
    "conj_physical": lambda x: torch.conj_physical(torch.complex(x, x)).imag,
    "data": lambda x: x.data,
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "feature_dropout": lambda x: torch.feature_dropout(x, 0.5, False),
    "fill": lambda x: x.clone().fill_(2.0) + x,
    "half": lambda x: x.half().double(),
    "imag": lambda x: torch.complex(x, x * 2).imag,
    "invert": lambda x: ~(x > 0.5),
    "pow": lambda x: x**2 + 2**x,
    "requires_grad": lambda x: (x + 0).requires_grad_(False),
    "resolve_conj": lambda x: torch.complex(x, x).conj().resolve_conj().imag,
    "resolve_neg": lambda x: torch.complex(x, x).conj().imag.resolve_neg(),
    "special_erf": lambda x: torch.special.erf(x),
    "special_expit": lambda x: torch.special.expit(x),
    "threshold": lambda x: F.threshold(x, 0.5, 20.0),
    "to": lambda x: x.to(torch.float32).to(dtype=torch.float64),
    "type": lambda x: x.type(torch.float32),
    "zero": lambda x: x.clone().zero_() + x,
}

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    **{
        name: getattr(torch, name)
        for name in """
        add sub subtract mul multiply div divide true_divide floor_divide fmod remainder pow arctan2 atan2 fmax fmin maximum
        minimum hypot ldexp logaddexp logical_and logical_or logical_xor eq ne not_equal ge greater_equal greater gt le
        less_equal less lt rsub xlogy clamp_min clamp_max clamp clip
        """.split()
    },
    "and": lambda x, y: (x > 0.5) & (y > 0.5),
    "or": lambda x, y: (x > 0.5) | (y > 0.5),
    "xor": lambda x, y: (x > 0.5) ^ (y > 0.5),
    "bitwise_and": lambda x, y: torch.bitwise_and((x * 9).long(), (y * 9).long()),
    "bitwise_or": lambda x, y: torch.bitwise_or((x * 9).long(), (y * 9).long()),
    "bitwise_xor": lambda x, y: torch.bitwise_xor((x * 9).long(), (y * 9).long()),
    "floordiv": lambda x, y: x // y,
    "polar": lambda x, y: torch.polar(*torch.broadcast_tensors(x, y)).real,
    "masked_fill": lambda x, y: (x + y).masked_fill(y > 0.5, 3.0),
}

TERNARY: dict[str, Callable[[Any, Any, Any], Any]] = {
    "addcdiv": lambda x, y, z: torch.addcdiv(x, y, z, value=2),
    "addcmul": lambda x, y, z: torch.addcmul(x, y, z, value=2),
    "clamp": lambda x, y, z: torch.clamp(x, y, z),
    "lerp": torch.lerp,
    "where": lambda x, y, z: torch.where(x > 0.5, y, z),
}


def _broadcast(case: Case, shape: tuple[int, ...]) -> tuple[int, ...]:
    kept = shape[case.size(0, len(shape)) :] if case.flip() else shape
    return tuple(case.of(size, size, 1) for size in kept)


def _every(name: str, shape: tuple[int, ...]) -> str:
    return " ".join(f"{name}:{d}" for d in range(len(shape)))


def _unary(name: str) -> Callable[[Any], Any]:
    return SPELLED.get(name) or next(getattr(s, name) for s in SPACES if callable(getattr(s, name, None)))


@pytest.mark.parametrize("name", sorted({*UNARY, *SPELLED}))
@square(*UNARY, *SPELLED, examples=3)
def test_one_tensor(case: Case, name: str) -> None:
    function = _unary(name)
    shape = case.shape(case.size(1, 3), 2, 4)
    case.check(lambda m: function(m.x), x=case.tensor(*shape), cut=_every("x", shape))


@pytest.mark.parametrize("name", sorted(name for name in UNARY if callable(getattr(torch.Tensor, f"{name}_", None))))
@square(*UNARY, examples=2)
def test_in_place(case: Case, name: str) -> None:
    function = getattr(torch.Tensor, f"{name}_")
    shape = case.shape(2, 2, 4)
    case.check(lambda m: function(m.x.clone()), x=case.tensor(*shape), cut=_every("x", shape))


@pytest.mark.parametrize("name", sorted(BINARY))
@square(*BINARY, examples=6)
def test_two_tensors(case: Case, name: str) -> None:
    shape = case.shape(case.size(1, 3), 2, 4)
    y = _broadcast(case, shape)
    function = BINARY[name]
    case.check(lambda m: function(m.x, m.y), x=case.tensor(*shape), y=case.tensor(*y), cut=_every("x", shape))


@pytest.mark.parametrize("name", sorted(TERNARY))
@square(*TERNARY, examples=12)
def test_three_tensors(case: Case, name: str) -> None:
    shape = case.shape(case.size(1, 3), 2, 4)
    function = TERNARY[name]
    y, z = (case.tensor(*_broadcast(case, shape)) for _ in range(2))
    case.check(lambda m: function(m.x, m.y, m.z), x=case.tensor(*shape), y=y, z=z, cut=_every("x", shape))


@square("add", "mul", examples=60)
def test_meetings_of_several_shapes(case: Case) -> None:
    shape = case.shape(case.size(2, 4), 1, 4)
    x, y, z = (case.tensor(*_broadcast(case, shape)) for _ in range(3))
    case.check(lambda m: m.x * m.y + m.z, x=x, y=y, z=z)


@square("add")
def test_meeting_an_input(case: Case) -> None:
    n, c = case.shape(2, 2)
    case.check(lambda m, s: m.x + s, inputs=(case.tensor(n, 1),), x=case.tensor(n, c), cut="x:1", stays={"x:0": "add"})


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "copy"])
@square("add", "sub", "mul", "div", "copy", examples=6)
def test_writing_a_second_tensor_into_the_first(case: Case, name: str) -> None:
    shape = case.shape(case.size(1, 3), 2, 4)
    y = _broadcast(case, shape)
    case.check(
        lambda m: getattr(m.x.clone(), f"{name}_")(m.y),
        x=case.tensor(*shape),
        y=case.tensor(*y),
        cut=_every("x", shape),
    )


@pytest.mark.parametrize("name", ["add", "mul", "sub", "truediv", "pow"])
@square("add", "mul", "sub", "div", "pow", examples=4)
def test_operators_in_place(case: Case, name: str) -> None:
    shape = case.shape(2, 2, 4)
    write = getattr(operator, f"i{name}")
    case.check(lambda m: write(m.x.clone(), m.y), x=case.tensor(*shape), y=case.tensor(*shape), cut="x:0 x:1 y:0 y:1")


@pytest.mark.parametrize("name", ["truediv", "floordiv", "mod", "pow", "sub"])
@square("div", "floordiv", "mod", "pow", "sub", examples=4)
def test_operators_with_a_number_first(case: Case, name: str) -> None:
    shape = case.shape(2, 2, 4)
    apply = getattr(operator, name)
    case.check(lambda m: apply(2.0, m.x), x=case.tensor(*shape), cut="x:0 x:1")


@square("masked_fill")
def test_masked_fill_with_a_constant_mask_keeps_its_dimensions(case: Case) -> None:
    n, c = case.shape(2, 2)
    mask = torch.rand(c) > 0.5
    case.check(
        lambda m: m.x.masked_fill(m.mask, 0.0), x=case.tensor(n, c), mask=mask, cut="x:0", stays={"x:1": "masked_fill"}
    )


@square("bernoulli")
def test_random_draws_have_the_shape_of_what_is_left(case: Case) -> None:
    n, c = case.shape(2, 2)
    case.check(lambda m: torch.bernoulli(m.x), x=case.tensor(n, c), cut="x:0 x:1", values=False)


@square("to", "type_as")
def test_another_tensor_that_only_lends_its_type(case: Case) -> None:
    shape, other = case.shape(case.size(1, 3), 2, 4), case.shape(case.size(1, 2), 2, 4)
    cast = case.of(torch.Tensor.type_as, torch.Tensor.to)
    case.check(
        lambda m, s: cast(m.x, s),
        inputs=(torch.zeros(other, dtype=torch.float32),),
        x=case.tensor(*shape),
        cut=_every("x", shape),
    )


@square("fill_diagonal", must_cut=False)
def test_fill_diagonal_depends_on_the_place(case: Case) -> None:
    n, c = case.shape(2, 2)
    stays = {"x:0": "fill_diagonal", "x:1": "fill_diagonal"}
    case.check(lambda m: m.x.clone().fill_diagonal_(5.0), x=case.tensor(n, c), stays=stays)


@square("where", must_cut=False)
def test_where_alone_answers_with_places(case: Case) -> None:
    n, c = case.shape(2, 2)
    case.check(lambda m: torch.where(m.x > 0.5), x=case.tensor(n, c), stays={"x:0": "where"}, dress=False)


# -- along one dimension -----------------------------------------------------------------------------


@square("softmax", "log_softmax", examples=30)
def test_softmax(case: Case) -> None:
    shape = case.shape(case.size(1, 3), 1, 4)
    dim, op = (
        case.dim(len(shape)),
        case.of(F.softmax, F.log_softmax, torch.softmax, torch.Tensor.log_softmax, F.softmin),
    )
    case.check(lambda m: op(m.x, dim=dim), x=case.signed(*shape), cut=_every("x", shape))


@square("softmax", "matmul")
def test_softmax_before_a_product(case: Case) -> None:
    n, k, m = case.shape(3, 2, 4)
    case.check(lambda s: s.x.softmax(-1) @ s.y, x=case.signed(n, k), y=case.signed(k, m), cut="x:0 x:1 y:0 y:1")


@square("exponential", "uniform", "normal", examples=20)
def test_random_fills_have_the_shape_of_what_is_left(case: Case) -> None:
    n, c = case.shape(2, 2, 4)
    fill = case.of(torch.Tensor.exponential_, torch.Tensor.uniform_, torch.Tensor.normal_)
    case.check(lambda m: fill(m.x.clone()), x=case.tensor(n, c), cut="x:0 x:1", values=False)


@square("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", examples=50)
def test_running_sums(case: Case) -> None:
    shape = case.shape(case.size(2, 3), 2, 4)
    dim, op = case.dim(len(shape)), case.of(torch.cumsum, torch.cumprod, torch.logcumsumexp, torch.cummax, torch.cummin)
    along = dim % len(shape)
    cut = " ".join(f"x:{d}" for d in range(len(shape)) if d != along)
    case.check(lambda m: op(m.x, dim), x=case.tensor(*shape), cut=cut, stays={f"x:{along}": op.__name__})


@square("glu", examples=30)
def test_gated_linear_unit(case: Case) -> None:
    shape = list(case.shape(case.size(1, 3), 1, 4))
    dim = case.dim(len(shape))
    shape[dim] *= 2
    cut = " ".join(f"x:{d}" for d in range(len(shape)) if shape[d] > 2 or d != dim % len(shape))
    case.check(lambda m: F.glu(m.x, dim), x=case.tensor(*shape), cut=cut)


@square("linear", "glu", "silu", "mul")
def test_gates(case: Case) -> None:
    i, h, o = case.shape(3, 2, 4)
    operands = {"a": case.tensor(2 * h, i), "b": case.tensor(h, i), "c": case.tensor(o, h)}
    case.check(
        lambda m, x: F.linear(F.glu(F.linear(x, m.a)) * F.silu(F.linear(x, m.b)), m.c),
        inputs=(case.tensor(2, i),),
        cut="a:0 b:0 c:0 c:1",
        **operands,
    )


@square("complex", "real")
def test_real_part_of_a_complex_number(case: Case) -> None:
    shape = case.shape(2, 2, 4)
    case.check(lambda m: torch.complex(m.x, m.y).real, x=case.tensor(*shape), y=case.tensor(*shape), cut="x:0 x:1")


@square("cosine_similarity", examples=40)
def test_cosine_similarity(case: Case) -> None:
    shape = case.shape(case.size(2, 3), 2, 4)
    dim = case.dim(len(shape))
    other = tuple(case.of(s, 1) if d != dim % len(shape) else s for d, s in enumerate(shape))
    x, y = case.signed(*shape), case.signed(*other)
    case.check(
        lambda m: F.cosine_similarity(m.x, m.y, dim), x=x, y=y, cut=" ".join(f"x:{d}" for d in range(len(shape)))
    )


@square("cosine_similarity", examples=20)
def test_cosine_similarity_of_what_the_model_computes(case: Case) -> None:
    n, c = case.shape(2, 2, 4)
    case.check(
        lambda m: F.cosine_similarity(m.x.exp(), m.y.cos(), -1), x=case.signed(n, c), y=case.signed(n, c), cut="x:1"
    )


@square("cross", "linalg_cross", examples=30)
def test_cross_products(case: Case) -> None:
    n = case.size(2, 4)
    op = case.of(lambda x, y: torch.cross(x, y, dim=1), torch.linalg.cross)
    x, y = case.signed(n, 3), case.signed(n, 3)
    case.check(lambda m: op(m.x, m.y), x=x, y=y, cut="x:0 y:0", stays={"x:1": "", "y:1": ""})


@square("norm", "clamp_min", "expand_as", "div", examples=30)
def test_normalize(case: Case) -> None:
    shape = case.shape(case.size(2, 3), 2, 4)
    dim = case.dim(len(shape))
    cut = " ".join(f"x:{d}" for d in range(len(shape)))
    case.check(lambda m: F.normalize(m.x, dim=dim), x=case.signed(*shape), cut=cut)


@square("broadcast_tensors", examples=30)
def test_tensors_of_one_shape(case: Case) -> None:
    shape = case.shape(case.size(1, 3), 2, 4)
    x, y = case.tensor(*shape), case.tensor(*_broadcast(case, shape))
    case.check(lambda m: torch.broadcast_tensors(m.x, m.y), x=x, y=y, cut=_every("x", shape))
