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


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_are_cut_and_counted(kind: str) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.cell, self.head = nn.Linear(6, 10), getattr(nn, kind)(10, 8), nn.Linear(8, 2)
            self.width = 8

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            h = c = x.new_zeros(x.shape[0], self.width)
            for t in range(x.shape[1]):
                h, c = self.cell(x[:, t], (h, c)) if kind == "LSTMCell" else (self.cell(x[:, t], h), c)
            return self.head(h)

    torch.manual_seed(0)
    x = torch.randn(2, 4, 6)
    result = surgeon.prune(Steps(), x, ratio=0.5, scope="local")
    cell = result.model.cell
    assert (cell.input_size, cell.hidden_size, result.model.width) == (5, 4, 4)
    before, after, counted_before, counted_after = result.proof.flops
    assert (before, after) == (counted_before, counted_after)
    result.model(x).sum().backward()


def test_a_decoder_starts_where_the_encoder_ends() -> None:
    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 12)
            self.encoder = nn.GRU(12, 8, 2, batch_first=True)
            self.decoder = nn.GRU(12, 8, 2, batch_first=True)
            self.head = nn.Linear(8, 20)

        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            seen, state = self.encoder(self.words(source))
            said, _ = self.decoder(self.words(target), state)
            return self.head(said + torch.softmax(said @ seen.transpose(1, 2), -1) @ seen)

    torch.manual_seed(0)
    inputs = torch.randint(0, 20, (3, 5)), torch.randint(0, 20, (3, 4))
    small = surgeon.prune(Translator(), inputs, ratio=0.5, scope="local").model
    assert small.encoder.hidden_size == small.decoder.hidden_size == 4


def test_a_state_that_is_given_stays_as_wide() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return self.head(self.rnn(x, state)[0])

    graph = surgeon.trace(Given(), (torch.randn(2, 4, 6), torch.randn(1, 2, 8)))
    assert not graph.free
    assert "gru" in graph.explain("rnn")


def test_a_start_of_zeros_that_is_written_to_couples_the_layers() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.rnn, self.head = nn.Linear(6, 8), nn.GRU(6, 8, 2, batch_first=True), nn.Linear(8, 2)
            self.width = 8

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(2, x.shape[0], self.width)
            state[1] = self.start(x[:, 0])
            return self.head(self.rnn(x, state)[0])

    torch.manual_seed(0)
    x = torch.randn(2, 4, 6)
    small = surgeon.prune(Written(), x, ratio=0.5, scope="local").model
    assert small.start.out_features == small.rnn.hidden_size == small.width
