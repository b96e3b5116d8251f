"""Rows times matrix is the contraction, for every kind of call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from surgeon.calibrate import contractions, input_moments, record

LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(5, 7), (3, 4, 5)),
    (nn.Conv1d(4, 6, 3, padding=1, groups=2), (3, 4, 9)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False), (2, 4, 9, 8)),
    (nn.Conv2d(6, 6, 3, padding="same", groups=6), (2, 6, 5, 5)),
    (nn.Conv2d(4, 8, 2, padding="valid", groups=4), (2, 4, 5, 6)),
    (nn.Conv3d(2, 4, (1, 2, 3), padding=(0, 1, 1)), (2, 2, 3, 4, 5)),
    (nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1, groups=2), (3, 4, 5)),
    (nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 3), (1, 0), dilation=(1, 2), bias=False), (2, 4, 4, 5)),
    (nn.ConvTranspose2d(6, 6, 3, stride=2, output_padding=1, groups=6), (2, 6, 3, 3)),
    (nn.ConvTranspose3d(2, 4, (1, 2, 3), stride=(1, 2, 1)), (2, 2, 3, 2, 4)),
]


@pytest.mark.parametrize("layer, shape", LAYERS, ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "")
def test_rows_times_matrix(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer, x = layer.double(), torch.randn(shape, dtype=torch.float64)
    (found,) = contractions(record(layer, x))
    y: Any = layer(x).detach()
    many = found.positions(x.shape)
    at = torch.randperm(many)[: many // 2].sort().values
    leaves = dict(layer.named_parameters())
    matrix = found.matrix(leaves)
    made = (found.rows(x, at) @ matrix.mT).transpose(0, 1).reshape(len(at), -1)
    made = made if layer.bias is None else made + layer.bias.detach()
    assert many * y.shape[found.channel] == y.numel()
    assert torch.allclose(made, found.outputs(y, at))
    assert torch.equal(found.tensor(matrix, leaves), layer.weight)
    # Every sample holds as many rows, in order.
    assert torch.equal(
        found.samples(x.shape, torch.arange(many)), torch.arange(shape[0]).repeat_interleave(many // shape[0])
    )


def test_moments_are_those_of_all_rows() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    batches = [torch.randn(n, 4, dtype=torch.float64) for n in (9, 4)]
    found = input_moments([record(model, batch) for batch in batches])["2.weight"]
    rows = model[:2](torch.cat(batches)).detach()
    assert found.rows == 13
    assert torch.allclose(found.x[0], rows.mean(0))
    assert torch.allclose(found.xx[0], torch.cov(rows.T, correction=0))
    scarce = input_moments([record(model, batch) for batch in batches], memory=8 * 4 * 4)
    assert torch.allclose(scarce["2.weight"].xx[0], rows.var(0, correction=0)) and scarce["0.weight"].xx.dim() == 3
