"""A callback for Lightning that cuts the module while ``Trainer.fit`` trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from surgeon.errors import PrunerError
from surgeon.finetune.batch import moved
from surgeon.operate import operate
from surgeon.plan import Plan
from surgeon.pruner import Pruner
from surgeon.schedule import Schedule


class PrunerCallback(Callback):
    """Prunes the LightningModule, or a module inside of it, with a ``surgeon.Pruner``.

    One training step is one optimizer step. Optimizers are migrated; schedulers of learning rates go on. Checkpoints
    hold the pruner's state: ``fit``, ``validate``, ``test`` and ``predict`` with ``ckpt_path`` first cut a module of
    the original size as far as it was. With a regularizer, its gradients are added before each optimizer step.

    Parameters
    ----------
    schedule : of ``surgeon.schedule``
    example_inputs : for ``surgeon.trace``; the module's ``example_input_array`` if not given
    module : name of the module that is cut, such as "net"; "" is the LightningModule itself
    ema : averages of weights to take along
    options : of ``surgeon.Pruner``

    Attributes
    ----------
    pruner : made when the fit starts

    Examples
    --------
    >>> from surgeon.integrations.lightning import PrunerCallback
    >>> schedule = surgeon.schedule.gradual(flops=0.4, steps=1000, every=100)
    >>> Trainer(callbacks=[PrunerCallback(schedule, x)]).fit(module, loader)
    """

    pruner: Pruner | None = None

    def __init__(
        self, schedule: Schedule, example_inputs: Any = None, *, module: str = "", ema: Any = None, **options: Any
    ) -> None:
        super().__init__()
        self.schedule, self.example_inputs, self.module, self.ema = schedule, example_inputs, module, ema
        self.options = options
        self.steps = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the pruner, and let a checkpoint cut the module before its weights are loaded."""
        if trainer.world_size > 1:
            raise PrunerError(
                f"Trainer runs {trainer.world_size} processes, and Lightning does not wrap a module anew after a cut; "
                "train on one device, or with surgeon.Pruner in a loop of your own"
            )
        if self.pruner is not None and self.pruner.model is pl_module.get_submodule(self.module):
            self._listen(pl_module)
            return
        given = pl_module.example_input_array if self.example_inputs is None else self.example_inputs
        if given is None:
            raise PrunerError("give PrunerCallback example_inputs=, or the module an example_input_array")
        model = pl_module.get_submodule(self.module)
        self.pruner = Pruner(model, moved(given, pl_module.device), self.schedule, optimizer=None, **self.options)
        self.steps = 0
        self._listen(pl_module)

    def _listen(self, pl_module: LightningModule) -> None:
        """Cut before weights are loaded: of a checkpoint, callbacks are told after that, and the module before."""
        own = pl_module.on_load_checkpoint

        def restore(checkpoint: dict[str, Any]) -> None:
            self.restore(checkpoint)
            own(checkpoint)

        vars(pl_module)["on_load_checkpoint"] = restore

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module's own hook."""
        vars(pl_module).pop("on_load_checkpoint", None)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the optimizers along, which exist by now."""
        pruner = self._made()
        pruner.attach(trainer.optimizers, self.ema)
        pruner.example_inputs = moved(pruner.example_inputs, pl_module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how many steps there were."""
        self.steps = trainer.global_step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Add the gradients of the regularizer."""
        pruner = self._made()
        if pruner.pressure is not None:
            pruner.regularize()

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Count a training step, unless gradients are accumulated, and cut if one is due."""
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            self._made().step()

    def state_dict(self) -> dict[str, Any]:
        """Return what checkpoints hold."""
        return {} if self.pruner is None else {"pruner": self.pruner.state_dict()}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Cut the module as far as a checkpoint was, if it has a pruner's state."""
        state = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("pruner")
        if state is not None:
            self._made().load_state_dict(state)

    def _made(self) -> Pruner:
        if self.pruner is None:
            raise PrunerError("PrunerCallback has no pruner before the trainer has set it up")
        return self.pruner


def load(module: nn.Module, checkpoint: Mapping[str, Any], *, inside: str = "") -> nn.Module:
    """Cut a module of the original size as a checkpoint was, load its weights, and return it; no trainer is needed.

    Parameters
    ----------
    module : the LightningModule, as it was made for the fit
    checkpoint : what ``torch.load`` reads from Lightning's file
    inside : ``module`` of the callback

    Raises
    ------
    PrunerError where the checkpoint has no pruner's state
    """
    states = [state["pruner"] for state in checkpoint.get("callbacks", {}).values() if "pruner" in (state or {})]
    if len(states) != 1:
        raise PrunerError(f"the checkpoint holds the state of {len(states)} pruners, and one is needed")
    if states[0]["plan"] is not None:
        operate(module.get_submodule(inside), Plan.from_json(states[0]["plan"]), inplace=True)
    module.load_state_dict(checkpoint["state_dict"])
    return module
