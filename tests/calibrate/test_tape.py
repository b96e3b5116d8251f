"""A tape plays what the model computed, and forks leave it alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgeon.calibrate import Player, noise, record
from surgeon.modules import tensors_in
from tests.nets import Residual


class InPlace(nn.Module):
    """Sums and activations in place, views that are written through, several outputs, a constant made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        x = F.relu(self.first(x), inplace=True)
        y = self.second(x)
        y += x
        y[:, :2] *= 2
        y[:, 3] = torch.arange(len(y)).to(y)
        values, places = y.max(1)
        return {"y": y, "most": (values, places), "parts": y.chunk(2, 1)}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize(
    "model, shape",
    [(InPlace(), (5, 4)), (Residual(), (2, 3, 6, 6)), (Attention(), (2, 3, 8)), (nn.LSTM(4, 3), (5, 2, 4))],
)
def test_played_as_recorded(model: nn.Module, shape: tuple[int, ...]) -> None:
    model = model.eval()
    x = torch.randn(shape)
    with torch.no_grad():
        wanted = list(_tensors(model(x)))
    tape = record(model, x)
    player = Player(tape)
    half = len(tape.steps) // 2
    player.advance(half)
    for _ in range(2):  # what a fork does in place is not seen by its origin
        assert all(torch.equal(a, b) for a, b in zip(player.fork().finish(), wanted, strict=True))
    assert player.at == half
    assert all(torch.equal(a, b) for a, b in zip(player.finish(), wanted, strict=True))
    # Only what is returned is still held.
    assert len({id(v) for v in player.values.values()}) <= len(wanted)


def _tensors(tree: object) -> list[Tensor]:
    return list(tensors_in(tree))


def test_weights_that_change_are_played() -> None:
    model = Residual().eval()
    x = torch.randn(2, 3, 6, 6)
    tape = record(model, x)
    model.conv2.weight.data.mul_(2)
    with torch.no_grad():
        assert torch.equal(Player(tape).finish()[0], model(x))


def test_noise_has_the_form_of_the_inputs() -> None:
    given = {
        "x": torch.randn(2, 3, 8, 8),
        "ids": torch.tensor([[1, 2], [3, 4]]),
        "flag": True,
        "z": (torch.randn(2, 5),),
    }
    found = noise(given, 100, batch=64)
    assert [len(batch["x"]) for batch in found] == [64, 36]
    assert found[1]["ids"].shape == (36, 2) and found[0]["flag"] is True and found[0]["z"][0].shape == (64, 5)
    images = found[0]["x"]
    neighbours = (images[..., 1:] * images[..., :-1]).mean() / images.square().mean()
    assert abs(float(images.std()) - 1) < 0.01 and neighbours > 0.5
