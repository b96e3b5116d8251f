"""What has no rule: it pins what it touches, and the page of operators says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from surgeon.labels.rules import RULES
from surgeon.labels.rules.__main__ import UNKNOWN, page

PAGE = Path(__file__).parents[2] / "docs" / "ops.md"

# op name -> a call on an activation [4, 6]
CALLS: dict[str, Callable[[Tensor], Any]] = {
    "masked_select": lambda x: x.masked_select(x > 0),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0)[0],
    "unique": lambda x: x.unique(),
    "stft": lambda x: torch.stft(x, 4, window=torch.ones(4), center=False, return_complex=True).abs(),
    "kron": lambda x: torch.kron(x, x),
    "block_diag": lambda x: torch.block_diag(x, x),
    "cartesian_prod": lambda x: torch.cartesian_prod(x[0], x[0]),
    "multinomial": lambda x: torch.multinomial(x.abs(), 2),
    "renorm": lambda x: x.renorm(2, 0, 1.0),
    "pairwise_distance": lambda x: F.pairwise_distance(x, x),
    "pdist": lambda x: F.pdist(x),
    "histc": lambda x: x.histc(3),
    "masked_scatter": lambda x: x.masked_scatter(x > 0, x),
    "index_put": lambda x: x.index_put((torch.tensor([0]),), x[1]),
    "cross_entropy_loss": lambda x: F.cross_entropy(x, torch.tensor([0, 1, 2, 3])),
    "nll_loss_nd": lambda x: F.nll_loss(x, torch.tensor([0, 1, 2, 3])),
    "linalg_svd": lambda x: torch.linalg.svd(x)[1],
    "linalg_qr": lambda x: torch.linalg.qr(x)[0],
    "linalg_norm": lambda x: torch.linalg.norm(x, dim=(0, 1)),
}


class Net(nn.Module):
    """An op behind a layer, and layers beside it that it has nothing to do with."""

    def __init__(self, op: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.touched, self.beside, self.head = nn.Linear(3, 6), nn.Linear(3, 5), nn.Linear(5, 2)
        self.op = op

    def forward(self, x: Tensor) -> Any:
        return self.op(self.touched(x)), self.head(self.beside(x))


@pytest.mark.parametrize("name", CALLS)
def test_an_op_without_a_rule_pins_what_it_touches(name: str) -> None:
    torch.manual_seed(0)
    graph = surgeon.trace(Net(CALLS[name]), torch.randn(4, 3))
    assert [group.name for group in graph.free] == ["beside"]
    assert f"for {name} in the model" in graph.explain("touched")


def test_sizes_read_by_an_op_without_a_rule_stay() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 6
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).view(-1, self.width)
            return self.b(h) * torch.hann_window(self.width).sum()

    graph = surgeon.trace(Sized(), torch.randn(4, 3))
    assert not graph.free


def test_what_is_said_to_have_no_rule_has_none() -> None:
    named = {name for names in UNKNOWN for name in names.split(", ")}
    assert not named & RULES.keys()


def test_every_rule_says_what_it_does() -> None:
    assert "|  |" not in page()


def test_the_page_of_operators_is_current() -> None:
    assert PAGE.read_text() == page(), "write it anew: python -m surgeon.labels.rules > docs/ops.md"
