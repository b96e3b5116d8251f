"""Squares of recurrent layers and cells."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume
from torch import Tensor, nn

from tests.rules.harness import Case, square

LAYERS = {
    "lstm": (torch.lstm, 4),
    "gru": (torch.gru, 3),
    "rnn_tanh": (torch.rnn_tanh, 1),
    "rnn_relu": (torch.rnn_relu, 1),
}
CELLS = {
    "lstm_cell": (torch.lstm_cell, 4),
    "gru_cell": (torch.gru_cell, 3),
    "rnn_tanh_cell": (torch.rnn_tanh_cell, 1),
    "rnn_relu_cell": (torch.rnn_relu_cell, 1),
}


def weights(
    case: Case, gates: int, i: int, h: int, rows: int, both: int, biases: bool, r: int = 0
) -> dict[str, Tensor]:
    """Return the weights of all layers and directions, in the order that torch takes them in."""
    found = {}
    for k in range(rows):
        width = i if k < both else both * (r or h)
        found |= {f"ih{k}": case.signed(gates * h, width), f"hh{k}": case.signed(gates * h, r or h)}
        found |= {f"{name}{k}": case.signed(gates * h) for name in ("bi", "bh") if biases}
        found |= {f"hr{k}": case.signed(r, h)} if r else {}
    return found


@pytest.mark.parametrize("name", LAYERS)
@square(*LAYERS, examples=20)
def test_layers(case: Case, name: str) -> None:
    op, gates = LAYERS[name]
    i, h, n, t = case.size(1, 3), case.size(1, 4), case.size(1, 2), case.size(1, 3)
    depth, both, biases, first = case.size(1, 2), case.size(1, 2), case.flip(), case.flip()
    w = weights(case, gates, i, h, depth * both, both, biases)
    x = case.tensor(n, t, i) if first else case.tensor(t, n, i)

    def run(m: Any) -> Any:
        hx = (m.h, m.c) if name == "lstm" else m.h
        return op(m.x, hx, [getattr(m, k) for k in w], biases, depth, 0.0, False, both == 2, first)

    states = {k: case.signed(depth * both, n, h) for k in (("h", "c") if name == "lstm" else ("h",))}
    case.check(run, x=x, **w, **states, dress=("x", *states), cut="x:2 ih0:1")


@pytest.mark.parametrize("name", LAYERS)
@square(*LAYERS, examples=12)
def test_layers_that_start_from_zeros(case: Case, name: str) -> None:
    op, gates = LAYERS[name]
    i, h, depth, both = case.size(1, 3), case.size(2, 4), case.size(1, 2), case.size(1, 2)
    w = weights(case, gates, i, h, depth * both, both, True)
    x = case.tensor(2, 3, i)

    def run(m: Any) -> Any:
        zeros = torch.zeros(depth * both, 2, m.hidden, dtype=torch.float64)
        hx = (zeros, zeros.to(torch.float64)) if name == "lstm" else zeros
        return op(m.x, hx, [getattr(m, k) for k in w], True, depth, 0.0, False, both == 2, True)[:1]

    case.check(run, x=x, **w, hidden=h, dress=False, cut="x:2 ih0:0 hh0:1")


@square("lstm", examples=30)
def test_projected_lstm(case: Case) -> None:
    i, h, r, depth, both = case.size(1, 3), case.size(2, 5), case.size(1, 3), case.size(1, 2), case.size(1, 2)
    assume(r < h)
    w, x = weights(case, 4, i, h, depth * both, both, True, r), case.tensor(2, 3, i)

    def run(m: Any) -> Any:
        hx = (torch.zeros(depth * both, 3, m.r, dtype=x.dtype), torch.zeros(depth * both, 3, m.hidden, dtype=x.dtype))
        return torch.lstm(m.x, hx, [getattr(m, k) for k in w], True, depth, 0.0, False, both == 2, False)

    case.check(run, x=x, **w, hidden=h, r=r, dress=False, cut="x:2 ih0:1")


@square("lstm", "gru", examples=12)
def test_weights_that_the_model_computes(case: Case) -> None:
    name = case.of("lstm", "gru")
    op, gates = LAYERS[name]
    i, h = case.size(1, 3), case.size(2, 4)
    w, x = weights(case, gates, i, h, 1, 1, True), case.tensor(2, 3, i)

    def run(m: Any) -> Any:
        zeros = torch.zeros(1, 2, m.hidden, dtype=x.dtype)
        made = [getattr(m, k).cos() for k in w]
        return op(m.x, (zeros, zeros) if name == "lstm" else zeros, made, True, 1, 0.0, False, False, True)

    case.check(run, x=x, **w, hidden=h, dress=False, cut="x:2")


@square("lstm", "pack_padded_sequence", "pad_packed_sequence", examples=20)
def test_packed_sequences(case: Case) -> None:
    i, h, both, first = case.size(1, 3), case.size(2, 4), case.size(1, 2), case.flip()
    w = weights(case, 4, i, h, both, both, True)
    x = case.tensor(2, 3, i) if first else case.tensor(3, 2, i)

    def run(m: Any) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(m.x, torch.tensor([3, 2]), batch_first=first)
        zeros = torch.zeros(both, 2, m.hidden, dtype=x.dtype)
        flat = [getattr(m, k) for k in w]
        out, h, c = torch.lstm(packed.data, packed.batch_sizes, (zeros, zeros), flat, True, 1, 0.0, False, both == 2)
        back = nn.utils.rnn.PackedSequence(out, packed.batch_sizes, None, None)
        return nn.utils.rnn.pad_packed_sequence(back, batch_first=first)[0], h, c

    case.check(run, x=x, **w, hidden=h, dress=("x",), cut="x:2 hh0:1")


@pytest.mark.parametrize("name", CELLS)
@square(*CELLS, examples=20)
def test_cells(case: Case, name: str) -> None:
    op, gates = CELLS[name]
    n, i, h, biases = case.size(1, 3), case.size(1, 3), case.size(1, 4), case.flip()
    w = weights(case, gates, i, h, 1, 1, biases)
    states = {k: case.signed(n, h) for k in (("h", "c") if name == "lstm_cell" else ("h",))}

    def run(m: Any) -> Any:
        hx: Any = tuple(getattr(m, k) for k in states)
        return op(m.x, hx if len(hx) == 2 else hx[0], *(getattr(m, k) for k in w))

    cut = "x:1 ih0:1" + " h:1 ih0:0 hh0:0 hh0:1" * (h > 1)
    case.check(run, x=case.tensor(n, i), **w, **states, dress=("x", *states), cut=cut)


@square("gru_cell", examples=12)
def test_a_cell_fed_back(case: Case) -> None:
    n, i, h = case.size(1, 3), case.size(1, 3), case.size(2, 4)
    w = weights(case, 3, i, h, 1, 1, True)

    def run(m: Any) -> Any:
        state = torch.zeros(n, m.hidden, dtype=torch.float64)
        for _ in range(3):
            state = torch.gru_cell(m.x, state, *(getattr(m, k) for k in w))
        return state

    case.check(run, x=case.tensor(n, i), **w, hidden=h, dress=False, cut="x:1 ih0:0 ih0:1 hh0:0 hh0:1")
