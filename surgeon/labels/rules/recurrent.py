"""Recurrent layers and cells: a hidden unit goes from every gate, from the state, and from what reads it.

The weights of all gates lie in one dimension, ``weight_ih [(g h), i]``, and the state meets itself one step earlier,
``weight_hh [(g h), h]``. With a projection the state is narrower than the cell: ``weight_hh [(g h), r]``,
``weight_hr [r, h]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.labels.contract import Operand, contract, spell
from surgeon.labels.family import Family, Value, build, fresh_family, make_solid, move, project
from surgeon.labels.flow import Flow, Rule
from surgeon.labels.notation import parse, parse_dims
from surgeon.labels.rules.joining import side_by_side
from surgeon.trace import Call

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}

ZEROS = frozenset({"zeros", "new_zeros", "zeros_like"})
# What may happen to a state of zeros before it is used: calls that return it as it is.
KEPT = frozenset({"to", "contiguous", "clone", "detach", "cuda", "requires_grad"})


@dataclass(frozen=True, eq=False)
class Direction:
    """One direction of one layer: its weights, and the states that it starts from."""

    weights: tuple[Tensor, ...]  # weight_ih, weight_hh, biases, weight_hr if projected
    states: tuple[Value, ...]  # h [n, r], and c [n, h] of an lstm
    projected: bool = False

    @property
    def line(self) -> str:
        """How weights combine with the cell's units, the state, and the state of the step before."""
        state = "r" if self.projected else "h"
        biases = " bias[(g h)]" * (len(self.weights) - 2 - self.projected)
        last = " weight_hr[r h]" if self.projected else ""
        return f"units[g h] state[{state}] before[p] weight_ih[(g h) i] weight_hh[(g h) p]{biases}{last}"


@dataclass(frozen=True, eq=False)
class Ran:
    """What a direction made: its output, and the labels of state and cell, along one dimension."""

    output: Value
    state: Family
    cell: Family


def run_direction(flow: Flow, call: Call, given: Value, dims: str, one: Direction) -> Ran:
    """Run one direction of one layer over an input with the given dimensions, ``n * i`` for example."""
    gates = GATES[call.name.removesuffix("_cell")]
    hidden, width = one.weights[0].shape[0] // gates, one.weights[1].shape[1]
    units = fresh_family(flow.space, 2, 1, hidden)
    cell = Family(units.labels.view(hidden))
    state = fresh_family(flow.space, 1, 0, width) if one.projected else cell
    letter, lead = "r" if one.projected else "h", dims.replace("*", "").replace("i", "")
    starts = "".join(f" start{k}[{lead} {x}]" for k, x in zip(range(len(one.states)), (letter, "h")))
    line = parse(f"{one.line} input[{dims}]{starts} -> {dims.replace('i', letter)}")
    values = [
        Value((gates, hidden), [units] if hidden > 1 else []),
        *(Value((width,), [state] if width > 1 else []) for _ in range(2)),
        *(flow.look(weight) for weight in one.weights),
        given,
        *one.states,
    ]
    operands = [
        Operand(value, spell(argument.dims or (), len(value.shape)), f"the {argument.name} of {call.name} can't shrink")
        for value, argument in zip(values, line.arguments)
    ]
    for weight in one.weights:
        if flow.look(weight).leaf is None:  # a reference masks parameters; what is made of them need not be zero
            flow.reduced(weight, range(weight.dim()))
    families, _ = contract(flow.space, line, operands, {}, len(given.shape))
    if one.projected:  # the op tells a projection by the state being narrower than the cell: a comparison of sizes
        state_size, cell_size = flow.sizes(one.weights[-1])
        if not state_size < cell_size:
            raise ValueError(f"a projection from {cell_size} to {state_size}")
    flow.roles(line, operands, len(given.shape))
    return Ran(Value((*given.shape[:-1], width), families), state, cell)


# -- whole layers ------------------------------------------------------------------------------------


def layers(flow: Flow, call: Call) -> None:
    """lstm(input, hx, weights, has_biases, num_layers, dropout, train, bidirectional, batch_first), or packed."""
    packed = isinstance(call.args[3], (tuple, list))  # (data, batch_sizes, hx, weights, has_biases, ...)
    given, state = call.args[0], call.args[2 if packed else 1]
    weights, biases, depth, both = (call.args[i + packed] for i in (2, 3, 4, 7))
    directions = 2 if both else 1
    dims = "* i" if packed else "n * i" if call.args[8] else "* n i"
    per = len(weights) // (int(depth) * directions)
    time = [d for d, token in enumerate(parse_dims(dims)) if token == ("*",)]
    flow.solid(given, time, f"{call.name} runs along the sequence")
    starts = [_rows(flow, call, tensor, packed) for tensor in ([state] if isinstance(state, Tensor) else state)]
    value, ran = flow.value(given), list[Ran]()
    for at in range(0, int(depth) * directions, directions):
        beside = []
        for k in range(at, at + directions):
            own = tuple(weights[k * per : (k + 1) * per])
            one = Direction(own, tuple(rows[k] for rows in starts), per == (5 if biases else 3))
            beside.append(run_direction(flow, call, value, dims, one))
        ran += beside
        value = _joined(flow, [r.output for r in beside])
    flow.set(call.result[0], value.families)
    along = [i for i, token in enumerate(parse_dims(dims)) if token == ("n",)]
    for tensor, labels in zip(call.result[1:], ([r.state for r in ran], [r.cell for r in ran])):
        flow.set(
            tensor, _stacked(flow, labels, tensor.dim()) + [_batch(flow, f) for d in along for f in value.along(d)]
        )


def _joined(flow: Flow, outputs: Sequence[Value]) -> Value:
    """Put the outputs of both directions side by side, ``[..., (forward backward)]``."""
    if len(outputs) == 1:
        return outputs[0]
    last = len(outputs[0].shape) - 1
    shape = (*outputs[0].shape[:-1], outputs[0].shape[-1] * 2)
    return Value(shape, side_by_side(flow, outputs, last))


def _rows(flow: Flow, call: Call, tensor: Tensor, packed: bool) -> list[Value]:
    """Take a state ``[rows, n, h]`` apart; a packed batch has no examples that could go, so its rows are ``[h]``."""
    flow.solid(tensor, [0], f"{call.name} has a state for each layer and direction")
    if packed:
        flow.solid(tensor, [1], f"{call.name} runs along the sequences of a batch")
    value, last = flow.value(tensor), tensor.dim() - 1
    shape = (value.shape[-1],) if packed else value.shape[1:]
    zeros = untouched_zeros(flow, value)
    rows = []
    for k in range(value.shape[0]):
        families = move(flow.space, value, lambda labels, k=k: labels.select(0, k))  # type: ignore[misc]
        if packed:
            columns = (project(flow.space, f, [1]) for f in families)
            families = [Family(f.labels.squeeze(0)) for f in columns if f is not None]
        if zeros and k:  # all rows keep equally many: it is enough that the first says how many
            families = [f for f in families if last - 1 not in f.dims] if not packed else []
            shape = (*shape[:-1], 1)
        rows.append(Value(shape, families))
    return rows


def untouched_zeros(flow: Flow, value: Value) -> bool:
    """Tell whether a tensor is zero at every position, so that any of its positions may stand for any other."""
    made = _origin(flow, value)
    if made is None or flow.ops[made].name not in ZEROS:
        return False
    same = {made}
    for index, op in enumerate(flow.ops[made + 1 :], made + 1):
        if not same & set(op.feeds) or op.name.removesuffix("_cell") in GATES:
            continue
        if op.name not in KEPT or op.inplace:
            return False
        same.add(index)
    return True


def _origin(flow: Flow, value: Value) -> int | None:
    """Return the op that made a tensor, seen through calls that return it as it is."""
    made = value.maker
    while made is not None and flow.ops[made].name in KEPT and len(flow.ops[made].feeds) == 1:
        (made,) = flow.ops[made].feeds
    return made


def _stacked(flow: Flow, rows: Sequence[Family], rank: int) -> list[Family]:
    """Return the families of final states ``[rows, n, h]``: each row has its own units, and keeps equally many."""
    labels = torch.stack([row.labels for row in rows])
    if labels.shape[1] == 1:
        return []
    labels = labels.view(len(rows), *[1] * (rank - 2), -1)
    value = Value((len(rows), *[1] * (rank - 2), labels.shape[-1]), build(flow.space, labels))
    make_solid(flow.space, value, 0, "a state for each layer and direction")
    return value.families


def _batch(flow: Flow, family: Family) -> Family:
    """Return what a family of the output says about examples, along the batch of a state ``[rows, n, h]``."""
    batch = next(d for d in family.dims if d < family.labels.dim() - 1)
    column = project(flow.space, family, [batch])
    assert column is not None
    return Family(column.labels.reshape(1, -1, 1))


# -- cells -------------------------------------------------------------------------------------------


def cell(flow: Flow, call: Call) -> None:
    """lstm_cell(input, (h, c), weight_ih, weight_hh, bias_ih, bias_hh): one step."""
    given, state = call.args[:2]
    weights = tuple(w for w in call.args[2:] if isinstance(w, Tensor))
    states = [state] if isinstance(state, Tensor) else list(state)
    dims = "n i" if given.dim() == 2 else "i"
    ran = run_direction(flow, call, flow.value(given), dims, Direction(weights, tuple(map(flow.value, states))))
    results = [call.result] if isinstance(call.result, Tensor) else call.result
    for result in results:
        flow.set(result, list(ran.output.families))


# -- packed sequences --------------------------------------------------------------------------------


def pack(flow: Flow, call: Call) -> None:
    """_pack_padded_sequence(input [n, t, ...], lengths): examples and steps become one dimension."""
    _repack(flow, call, call.args[0], 2, 1)


def pad(flow: Flow, call: Call) -> None:
    """_pad_packed_sequence(data [(n t), ...], batch_sizes): the way back."""
    _repack(flow, call, call.args[0], 1, 2)


def _repack(flow: Flow, call: Call, tensor: Tensor, before: int, after: int) -> None:
    flow.solid(tensor, range(before), f"{call.name} reads sequences as a whole")
    rest = range(before, tensor.dim())
    left = [f for family in flow.value(tensor).families if (f := project(flow.space, family, rest)) is not None]
    for result in call.result:
        flow.set(result, [])
    one = (0,) * before  # a position along the solid dimensions stands for all of them
    lead = (1,) * after
    steps = Value(tuple(tensor.shape), left)
    flow.set(call.result[0], move(flow.space, steps, lambda x: x[one].view(*lead, *x.shape[before:])))


RULES: dict[str, Rule] = {
    **{name: layers for name in GATES},
    **{f"{name}_cell": cell for name in GATES},
    "pack_padded_sequence": pack,
    "pad_packed_sequence": pad,
}
