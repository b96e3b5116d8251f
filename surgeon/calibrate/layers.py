"""The layers of a tape: weights, and the calls that use them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.calibrate.contraction import Contraction
from surgeon.calibrate.operand import Operand, Operands
from surgeon.calibrate.tape import Leaf, Slot, Step, Tape


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight and the calls that use it, each with inputs of its own.

    bias  the one that all calls add, where nothing else does
    """

    calls: tuple[Contraction, ...]
    bias: Operand | None

    @property
    def first(self) -> Contraction:
        """Its first call; matrices of all calls have the same form."""
        return self.calls[0]

    @property
    def name(self) -> str:
        """The name of its weight: ``conv1.weight``, ``attn.in_proj_weight[0:64]``."""
        return str(self.first.weight)

    @property
    def owner(self) -> str:
        """The module that holds the weight."""
        return self.first.weight.leaf.rpartition(".")[0]

    def __str__(self) -> str:
        return f"{self.name} in {len(self.calls)} calls"


def contractions(tape: Tape) -> Iterator[Contraction]:
    """Yield the linear and convolutional calls whose weights are parameters, or parts of parameters."""
    operands = Operands(tape)
    for at in range(len(tape.steps)):
        found = _read(at, tape, operands)
        if found is not None:
            yield found


def layers(tape: Tape) -> list[Layer]:
    """Return the weights that nothing but contractions of one form uses, in the order of their first calls."""
    return [found for found, reason in examined(tape) if not reason]


def examined(tape: Tape) -> list[tuple[Layer, str]]:
    """Return the weights that contractions use, each with the reason why it can't be fitted to what they are given."""
    alike: list[list[Contraction]] = []
    for call in contractions(tape):
        mates = next((calls for calls in alike if calls[0].weight.same(call.weight)), None)
        if mates is None:
            alike.append([call])
        else:
            mates.append(call)
    uses = _Uses(tape, [call for calls in alike for call in calls])
    return [(Layer(tuple(calls), uses.bias(calls)), uses.refusal(calls)) for calls in alike]


class _Uses:
    """What else the parameters of contractions are used for."""

    def __init__(self, tape: Tape, calls: Sequence[Contraction]) -> None:
        self.tape = tape
        self.known = [(operand, c.at) for c in calls for operand in (c.weight, c.bias) if operand is not None]
        self.readers: dict[Any, set[int]] = {}
        for at, step in enumerate(tape.steps):
            for source in (*step.inputs, *step.leaves):
                self.readers.setdefault(source, set()).add(at)

    def __str__(self) -> str:
        return f"Uses of {len(self.known)} operands"

    def elsewhere(self, operand: Operand, mine: set[int]) -> list[int]:
        """Return the calls that are given an operand, or something of it, beside those known."""
        same = [(other, at) for other, at in self.known if other.leaf == operand.leaf]
        known = {call for other, at in same for call in (at, *other.through)}
        taken = {at for source in (Leaf(operand.leaf), *operand.sources) for at in self.readers.get(source, ())}
        others = {at for other, at in same if at not in mine and other.overlaps(operand)}
        return sorted((taken - known) | others)

    def bias(self, calls: Sequence[Contraction]) -> Operand | None:
        bias, mine = calls[0].bias, {c.at for c in calls}
        common = bias is not None and all(c.bias is not None and c.bias.same(bias) for c in calls)
        return bias if common and bias is not None and not self.elsewhere(bias, mine) else None

    def refusal(self, calls: Sequence[Contraction]) -> str:
        first, mine = calls[0], {c.at for c in calls}
        if any((c.groups, c.kernel, c.spread) != (first.groups, first.kernel, first.spread) for c in calls):
            return "its weight is used by calls of several forms"
        others = [at for call in calls for at in self.elsewhere(call.weight, mine)]
        return f"its weight is also given to {self.tape.steps[min(others)].name}" if others else ""


_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
_TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}


def _read(at: int, tape: Tape, operands: Operands) -> Contraction | None:
    step = tape.steps[at]
    read = _READERS.get(step.name)
    if read is None or len(step.outputs) != 1:
        return None
    return read(at, step, tape, operands)


def _given(slot: Any, weight: Operand | None, tape: Tape, rank: int) -> bool:
    """Tell whether a value is a batch for a weight of its own, of so many dimensions."""
    fits = isinstance(slot, Slot) and weight is not None and weight.read(tape.leaves).dim() == rank
    return fits and (rank == 2 or len(tape.shapes[slot]) == rank)


def _linear(at: int, step: Step, tape: Tape, operands: Operands) -> Contraction | None:
    x, weight, bias, known = _operands(step, operands)
    if weight is None or not known or not _given(x, weight, tape, 2):
        return None
    return Contraction(at, weight, bias, x, step.outputs[0])


def _operands(step: Step, operands: Operands) -> tuple[Any, Operand | None, Operand | None, bool]:
    """Return input, weight and bias of a call, and whether the bias is known, if there is one."""
    given = step.argument(2, "bias")
    bias = operands.find(given)
    return step.argument(0, "input"), operands.find(step.argument(1, "weight")), bias, (bias is None) == (given is None)


def _matmul(at: int, step: Step, tape: Tape, operands: Operands) -> Contraction | None:
    """``x @ w`` and ``addmm(bias, x, w)`` with a weight ``[i, o]``."""
    plus = int(step.name == "addmm")
    x, weight = step.argument(plus, "mat1"), operands.find(step.argument(1 + plus, "mat2"))
    scaled = {"alpha", "beta", "out"} & step.kwargs.keys()
    if scaled or weight is None or not _given(x, weight, tape, 2) or len(tape.shapes[x]) < 2:
        return None
    bias = operands.find(step.args[0]) if plus and step.args else None
    if plus and (bias is None or bias.read(tape.leaves).dim() != 1):
        return None
    return Contraction(at, weight.turned(tape.leaves), bias, x, step.outputs[0])


def _conv(at: int, step: Step, tape: Tape, operands: Operands) -> Contraction | None:
    spatial = _CONVOLUTIONS[step.name]
    x, weight, bias, known = _operands(step, operands)
    if weight is None or not known or not _given(x, weight, tape, spatial + 2):
        return None
    kernel = tuple(weight.read(tape.leaves).shape[2:])
    stride, dilation = (_each(step.argument(p, n, 1), spatial) for p, n in ((3, "stride"), (5, "dilation")))
    padding = _padding(step.argument(4, "padding", 0), kernel, dilation)
    groups = int(step.argument(6, "groups", 1))
    return Contraction(at, weight, bias, x, step.outputs[0], groups, kernel, stride, padding, dilation)


def _transposed(at: int, step: Step, tape: Tape, operands: Operands) -> Contraction | None:
    spatial = _TRANSPOSED[step.name]
    x, weight, bias, known = _operands(step, operands)
    if weight is None or not known or not _given(x, weight, tape, spatial + 2):
        return None
    kernel = tuple(weight.read(tape.leaves).shape[2:])
    given = ((3, "stride", 1), (4, "padding", 0), (5, "output_padding", 0), (7, "dilation", 1))
    spread, pad, more, dilation = (_each(step.argument(*which), spatial) for which in given)
    padding = tuple((d * (k - 1) - p, d * (k - 1) - p + m) for d, k, p, m in zip(dilation, kernel, pad, more))
    groups = int(step.argument(6, "groups", 1))
    ones = (1,) * spatial
    return Contraction(at, weight, bias, x, step.outputs[0], groups, kernel, ones, padding, dilation, spread)


_READERS: dict[str, Callable[[int, Step, Tape, Operands], Contraction | None]] = {
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "addmm": _matmul,
    **dict.fromkeys(_CONVOLUTIONS, _conv),
    **dict.fromkeys(_TRANSPOSED, _transposed),
}


def _each(given: Any, spatial: int) -> tuple[int, ...]:
    sizes = tuple(map(int, given)) if isinstance(given, (tuple, list)) else (int(given),)
    return sizes * spatial if len(sizes) == 1 else sizes


def _padding(given: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if given == "valid":
        return tuple((0, 0) for _ in kernel)
    if given == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel)]
        return tuple((t // 2, t - t // 2) for t in total)
    return tuple((p, p) for p in _each(given, len(kernel)))
