"""A pruner in a loop that Accelerate prepared: as in the plain loop, with save_state and load_state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import surgeon
from surgeon.errors import FileError, PrunerError
from tests.nets import Residual
from tests.training.loops import STEPS, dataset, same, schedule

pytest.importorskip("accelerate")

import accelerate

from surgeon.integrations.accelerate import prepared

pytestmark = pytest.mark.filterwarnings("ignore")

X = torch.linspace(-1, 1, 108).sin().view(1, 3, 6, 6)


class Loop:
    """Everything that Accelerate prepares, and a pruner."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.accelerator = accelerate.Accelerator(cpu=True, **options)
        net = Residual()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        loader = DataLoader(dataset(), batch_size=4)
        self.net, self.optimizer, self.loader, self.decay = self.accelerator.prepare(net, optimizer, loader, decay)
        self.pruner = prepared(self.accelerator, self.net, X, schedule(), optimizer=self.optimizer)

    def train(self, first: int = 0, last: int = STEPS) -> nn.Module:
        for i, (x, y) in enumerate(self.loader):
            if not first <= i < last:
                continue
            with self.accelerator.accumulate(self.net):
                self.accelerator.backward(F.cross_entropy(self.net(x), y))
                self.optimizer.step()
                if self.accelerator.sync_gradients:
                    self.pruner.step()
                self.decay.step()
                self.optimizer.zero_grad()
        return self.accelerator.unwrap_model(self.net)


def plain() -> tuple[nn.Module, float]:
    torch.manual_seed(0)
    net = Residual()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    pruner = surgeon.Pruner(net, X, schedule(), optimizer=optimizer)
    for x, y in DataLoader(dataset(), batch_size=4):
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        pruner.step()
        decay.step()
        optimizer.zero_grad()
    return net, optimizer.param_groups[0]["lr"]


def test_it_trains_as_the_plain_loop_does() -> None:
    net, rate = plain()
    loop = Loop()
    assert same(loop.train().state_dict(), net.state_dict())
    assert [cut.step for cut in loop.pruner.history] == [4, 8]
    assert type(loop.optimizer).__name__ == "AcceleratedOptimizer"
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(rate) and rate != 1e-2


def test_accumulated_gradients_are_one_step() -> None:
    loop = Loop(gradient_accumulation_steps=3)
    loop.train()
    assert loop.pruner.taken == STEPS // 3 and [cut.step for cut in loop.pruner.history] == [4]


@pytest.mark.parametrize("half", [2, 6, 10])
def test_a_run_that_was_stopped_goes_on(tmp_path: Path, half: int) -> None:
    net, _ = plain()
    first = Loop()
    first.train(last=half)
    first.accelerator.save_state(str(tmp_path))
    second = Loop()
    second.accelerator.load_state(str(tmp_path))
    assert len(second.pruner.history) == half // 4
    assert same(second.train(first=half).state_dict(), net.state_dict())


def test_mistakes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    loop.accelerator.save_state(str(tmp_path))
    (tmp_path / "surgeon.pt").unlink()
    with pytest.raises(FileError, match="saved without a pruner"):
        loop.accelerator.load_state(str(tmp_path))
    monkeypatch.setattr(type(loop.accelerator), "num_processes", 2)
    with pytest.raises(PrunerError, match="2 processes"):
        prepared(loop.accelerator, loop.net, X, schedule(), optimizer=loop.optimizer)
