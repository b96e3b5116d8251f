"""The Lightning callback cuts as the plain loop does, migrates what Lightning wraps, and resumes."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import surgeon
from surgeon.errors import PrunerError
from tests.nets import Residual
from tests.training.loops import STEPS, dataset, same, schedule

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning.pytorch")

from surgeon.integrations.lightning import PrunerCallback, load

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, about workers and loggers

X = torch.linspace(-1, 1, 108).sin().view(1, 3, 6, 6)


class Module(lightning.LightningModule):
    """A network, AdamW, and a rate that falls every step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Residual()
        self.example_input_array = X

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, _: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}


def module() -> Module:
    torch.manual_seed(0)
    return Module()


def trainer(folder: Path, *callbacks: Any, epochs: int = 1, **options: Any) -> Any:
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def loader() -> DataLoader:
    return DataLoader(dataset(), batch_size=4)


def plain(accumulate: int = 1, regularizer: Any = None) -> tuple[nn.Module, surgeon.Pruner, Any]:
    """Train in a loop of one's own."""
    net = module()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    pruner = surgeon.Pruner(net, X, schedule(), optimizer=optimizer, regularizer=regularizer)
    for i, (x, y) in enumerate(loader(), 1):
        (F.cross_entropy(net(x), y) / accumulate).backward()
        if i % accumulate:
            continue
        if regularizer is not None:
            pruner.regularize()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        decay.step()
    return net, pruner, optimizer


@pytest.mark.parametrize("regularizer", [None, {"kind": "group_lasso", "strength": 1e-3}])
def test_it_trains_as_the_plain_loop_does(tmp_path: Path, regularizer: Any) -> None:
    net, expected, optimizer = plain(regularizer=regularizer)
    tuned, callback = module(), PrunerCallback(schedule(), regularizer=regularizer)
    fit = trainer(tmp_path, callback)
    fit.fit(tuned, loader())
    assert same(tuned.state_dict(), net.state_dict())
    assert [cut.step for cut in callback.pruner.history] == [4, 8]
    assert callback.pruner.taken == STEPS and callback.pruner.plan == expected.plan
    (theirs,) = fit.optimizers
    assert {id(p) for g in theirs.param_groups for p in g["params"]} == {id(p) for p in tuned.parameters()}
    assert theirs.param_groups[0]["lr"] == pytest.approx(optimizer.param_groups[0]["lr"]) != 1e-2
    for p, q in zip(tuned.parameters(), net.parameters()):
        assert torch.equal(theirs.state[p]["exp_avg_sq"], optimizer.state[q]["exp_avg_sq"])
    assert "on_load_checkpoint" not in vars(tuned)


def test_accumulated_gradients_are_one_step(tmp_path: Path) -> None:
    net, _, _ = plain(accumulate=2)
    tuned, callback = module(), PrunerCallback(schedule(), X)
    trainer(tmp_path, callback, accumulate_grad_batches=2).fit(tuned, loader())
    assert callback.pruner.taken == STEPS // 2 and len(callback.pruner.history) == 1
    assert same(tuned.state_dict(), net.state_dict())


def test_criteria_that_read_gradients_find_them(tmp_path: Path) -> None:
    callback = PrunerCallback(schedule(), X, criterion="taylor", module="net")
    tuned = module()
    trainer(tmp_path, callback).fit(tuned, loader())
    assert len(callback.pruner.history) == 2 and callback.pruner.model is tuned.net


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_that_was_stopped_goes_on(tmp_path: Path, epochs: int) -> None:
    """Both with the schedule in the middle and with it over."""
    cuts = surgeon.schedule.iterative(flops=0.5, times=3, every=6)
    whole = module()
    trainer(tmp_path, PrunerCallback(cuts), epochs=3).fit(whole, loader())
    first = trainer(tmp_path, PrunerCallback(cuts), epochs=epochs)
    first.fit(module(), loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    tuned, callback = module(), PrunerCallback(cuts)
    second = trainer(tmp_path, callback, epochs=3)
    second.fit(tuned, loader(), ckpt_path=tmp_path / "half.ckpt")
    assert callback.pruner.taken == 3 * STEPS and len(callback.pruner.history) == 3
    assert same(tuned.state_dict(), whole.state_dict())


def test_checkpoints_without_a_fit(tmp_path: Path) -> None:
    tuned = module()
    fit = trainer(tmp_path, PrunerCallback(schedule()))
    fit.fit(tuned, loader())
    fit.save_checkpoint(tmp_path / "end.ckpt")
    found = load(module(), torch.load(tmp_path / "end.ckpt", weights_only=False))
    assert same(found.state_dict(), tuned.state_dict())
    other = module()
    outputs = trainer(tmp_path, PrunerCallback(schedule())).predict(
        other, DataLoader(dataset().tensors[0], batch_size=48), ckpt_path=tmp_path / "end.ckpt"
    )
    with torch.no_grad():
        assert torch.equal(outputs[0], tuned.eval()(dataset().tensors[0]))
    with pytest.raises(PrunerError, match="0 pruners"):
        load(module(), {"callbacks": {}, "state_dict": {}})


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    without = module()
    without.example_input_array = None
    with pytest.raises(PrunerError, match="example_inputs="):
        trainer(tmp_path, PrunerCallback(schedule())).fit(without, loader())
    with pytest.raises(PrunerError, match="before the trainer"):
        PrunerCallback(schedule()).restore({"callbacks": {PrunerCallback(schedule()).state_key: {"pruner": {}}}})


def test_the_module_can_be_copied_while_it_trains(tmp_path: Path) -> None:
    copies: list[nn.Module] = []

    class Copying(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            copies.append(copy.deepcopy(pl_module))

    trainer(tmp_path, PrunerCallback(schedule()), Copying()).fit(module(), loader())
    assert len(copies) == STEPS
