"""Recurrent layers keep a list of their parameters and integers that say how wide they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones; reads the output of every step, or the last state."""

    def __init__(self, kind: str, last: bool, **settings: Any) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 10)
        self.rnn = getattr(nn, kind)(10, 8, **settings)
        both, width = 1 + settings.get("bidirectional", False), settings.get("proj_size") or 8
        self.head = nn.Linear(width if last else both * width, 3)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.rnn(self.stem(x))
        if not self.last:
            return self.head(out)
        return self.head(state[0][-1] if isinstance(state, tuple) else state[-1])


CASES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "lstm": ("LSTM", False, {"batch_first": True}),
    "lstm of two layers both ways": ("LSTM", False, {"num_layers": 2, "bidirectional": True}),
    "gru, last state": ("GRU", True, {"num_layers": 2, "bidirectional": True}),
    "rnn": ("RNN", False, {"num_layers": 3, "nonlinearity": "relu", "batch_first": True, "bias": False}),
    "projected": ("LSTM", False, {"proj_size": 4, "num_layers": 2, "bidirectional": True}),
    "projected, last state": ("LSTM", True, {"proj_size": 3, "batch_first": True}),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", CASES)
def test_recurrent_layers_are_cut(name: str) -> None:
    kind, last, settings = CASES[name]
    torch.manual_seed(0)
    model, x = Recurrent(kind, last, **settings), torch.randn(2, 5, 6)
    result = surgeon.prune(model, x, ratio=0.5, scope="local")
    small = result.model.rnn
    assert small.input_size < 10 and (small.hidden_size < 8 or small.proj_size < 3)
    assert result.model.stem.out_features == small.input_size
    _whole(small)
    result.model(x).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    same = surgeon.operate(copy.deepcopy(model), result.plan, inplace=True)
    _whole(same.rnn)
    torch.testing.assert_close(same(x), result.model(x))
    again = surgeon.prune(result.model, x, ratio=0.3)
    assert sum(p.numel() for p in again.model.rnn.parameters()) < sum(p.numel() for p in small.parameters())
    torch.testing.assert_close(copy.deepcopy(again.model)(x), again.model(x))


def _whole(rnn: nn.RNNBase) -> None:
    """The list that the layer hands to torch holds its own parameters, and they are as wide as it says."""
    assert [id(w) for w in rnn._flat_weights] == [id(getattr(rnn, n)) for n in rnn._flat_weights_names]
    twin = type(rnn)(
        rnn.input_size,
        rnn.hidden_size,
        rnn.num_layers,
        bias=rnn.bias,
        bidirectional=rnn.bidirectional,
        **({"proj_size": rnn.proj_size} if rnn.proj_size else {}),
    )
    assert {n: p.shape for n, p in rnn.named_parameters()} == {n: p.shape for n, p in twin.named_parameters()}


def test_flops_of_recurrent_layers_are_listed_as_uncounted() -> None:
    result = surgeon.prune(Recurrent("LSTM", False), torch.randn(2, 5, 6), ratio=0.5)
    assert "lstm" in " ".join(result.proof.uncounted)
