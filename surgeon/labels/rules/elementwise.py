"""Meeting: ops that work position by position, with broadcasting."""

from __future__ import annotations

from torch import Tensor

from surgeon.labels.contract import Operand, contract, spell
from surgeon.labels.family import Family, Value, bind_leaf
from surgeon.labels.flow import Flow, Rule
from surgeon.labels.meet import Frame, meet
from surgeon.labels.notation import parse
from surgeon.modules import tensors_in
from surgeon.trace import Call

NAMES = """
abs absolute acos acosh add addcdiv addcmul alpha_dropout angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh
asin asinh atan atan2 atanh bernoulli bitwise_and bitwise_not bitwise_or bitwise_xor and or xor invert
bool ceil celu clamp clamp_max clamp_min clip clone contiguous copy cos cosh cpu cuda data deg2rad detach digamma
complex div divide dropout dropout1d dropout2d dropout3d feature_dropout elu eq erf erfc erfinv exp exp2 expm1 fix
float floor floor_divide floordiv fmax fmin fmod frac ge gelu greater greater_equal gt half bfloat16 double
hardshrink hardsigmoid hardswish hardtanh hypot i0 int isfinite isinf isnan ldexp le leaky_relu lerp less less_equal
lgamma log log10 log1p log2 log_sigmoid logaddexp logical_and logical_not logical_or logical_xor logit
long lt masked_fill maximum minimum mish mul multiply nan_to_num ne neg negative not_equal pos positive  pow
rad2deg real reciprocal relu relu6 remainder mod requires_grad round rrelu rsqrt rsub selu sgn sigmoid sign silu
sin sinc sinh softplus softshrink softsign special_expit sqrt square sub subtract truediv tan tanh tanhshrink
threshold true_divide trunc type where xlogy zero fill imag glu_jvp native_dropout special_erf
logsigmoid hardtanh_ stop_gradient alias lift_fresh exponential uniform normal polar conj resolve_conj resolve_neg
conj_physical
""".split()


def elementwise(flow: Flow, call: Call) -> None:
    """All tensor operands meet; the result carries what they have in common."""
    if not isinstance(call.result, Tensor):
        return flow.unknown(call, "more than one result")
    tensors = call.tensors
    flow.set(call.result, together(flow, tensors, call.result.dim()))


def together(flow: Flow, tensors: list[Tensor], rank: int) -> list[Family]:
    """Let tensors meet with broadcasting; returns the families of a result of the given rank."""
    values = [flow.look(tensor) for tensor in tensors]
    if all(v.solid for v in values):
        return []
    if len(values) == 1:
        return [flow.widen(f, rank) for f in bind_leaf(flow.space, values[0]).families]
    if any(v.unbound for v in values):
        operands = [Operand(v, spell((("...",),), len(v.shape)), flow.origin(t)) for v, t in zip(values, tensors)]
        arguments = " ".join(f"x{i}[...]" for i in range(len(values)))
        return contract(flow.space, parse(f"{arguments} -> ..."), operands, {}, rank)[0]
    frames = [_frame(flow, v, flow.origin(t), rank) for v, t in zip(values, tensors) if v.shape]
    return meet(flow.space, frames)


def _frame(flow: Flow, value: Value, because: str, rank: int) -> Frame:
    lead = (1,) * (rank - len(value.shape))
    families = [flow.widen(f, rank) for f in value.families] if lead else list(value.families)
    return Frame(lead + value.shape, families, solid_because=because)


def broadcast(flow: Flow, call: Call) -> None:
    """broadcast_tensors: all results have the shape in which the tensors meet."""
    families = together(flow, tensors_in(call.args), call.result[0].dim())
    for result in call.result:
        flow.set(result, list(families))


def converted(flow: Flow, call: Call) -> None:
    """to and type_as: another tensor only lends its type."""
    flow.set(call.result, list(flow.value(call.args[0]).families))


def statistic(flow: Flow, call: Call) -> None:
    """Softmax and its like: elementwise, with a statistic along one dimension."""
    tensor = call.args[0]
    dim = call.argument(1, "dim")
    if dim is not None:
        flow.align(tensor, [int(dim)])
    flow.set(call.result, list(flow.value(tensor).families))
    flow.reduced(tensor, [int(dim) % tensor.dim()] if dim is not None else range(tensor.dim()))


def ordered(flow: Flow, call: Call) -> None:
    """Cumulative sums and the like: positions along the dimension depend on their place, so it stays."""
    tensor = call.args[0]
    flow.align(tensor, [int(call.argument(1, "dim", -1))])
    flow.solid(tensor, [int(call.argument(1, "dim", -1))], f"{call.name} depends on the place along the dimension")
    for result in call.results:
        flow.set(result, list(flow.value(tensor).families))


def similarity(flow: Flow, call: Call) -> None:
    """cosine_similarity(x1, x2, dim): what both have along a dimension is multiplied and added up."""
    from surgeon.labels.rules.reduction import squeezed

    pair = [call.argument(0, "x1"), call.argument(1, "x2")]
    rank = max(tensor.dim() for tensor in pair)
    dim = int(call.argument(2, "dim", 1)) % rank
    flow.set(call.result, squeezed(flow, together(flow, pair, rank), rank, [dim]))
    for tensor in pair:
        if tensor.dim() == rank:
            flow.reduced(tensor, [dim])


def cross(flow: Flow, call: Call) -> None:
    """cross(a, b, dim): vectors of three along a dimension, which stay whole."""
    if call.argument(2, "dim") is None and call.name == "cross":
        return flow.unknown(call, "the dimension is the first of three positions")
    for tensor in call.args[:2]:
        flow.solid(tensor, [int(call.argument(2, "dim", -1))], f"{call.name} turns vectors of three")
    elementwise(flow, call)


def glu(flow: Flow, call: Call) -> None:
    """Gated linear unit: the two halves of a dimension meet."""
    from surgeon.labels.rules.movement import halves

    tensor = call.args[0]
    first, second = halves(flow, tensor, int(call.argument(1, "dim", -1)))
    flow.set(call.result, meet(flow.space, [Frame(first.shape, first.families), Frame(second.shape, second.families)]))


RULES: dict[str, Rule] = {
    **{name: elementwise for name in dict.fromkeys(NAMES)},
    **{name: statistic for name in ("softmax", "log_softmax", "softmin")},
    **{name: ordered for name in ("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")},
    **{name: converted for name in ("to", "type_as")},
    "broadcast_tensors": broadcast,
    "cosine_similarity": similarity,
    **{name: cross for name in ("cross", "linalg_cross")},
    "glu": glu,
}
