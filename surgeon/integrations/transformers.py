"""A callback for the ``Trainer`` of Hugging Face's transformers that cuts the model while it trains."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from surgeon.errors import PrunerError
from surgeon.finetune.batch import moved
from surgeon.integrations.state import FILE, read, write
from surgeon.pruner import Pruner
from surgeon.schedule import Schedule


class PrunerCallback(TrainerCallback):
    """Prunes the model that a Trainer is given with a ``surgeon.Pruner``.

    One training step is one optimizer step. The optimizer is migrated, inside of Accelerate's wrapper; the scheduler
    goes on. Each checkpoint gets a file ``surgeon.pt`` with the pruner's state. With a regularizer, its gradients are
    added before each optimizer step.

    Parameters
    ----------
    model : the model, of the original size
    example_inputs : for ``surgeon.trace``, such as a dict with ``input_ids``
    schedule : of ``surgeon.schedule``
    ema : averages of weights to take along
    options : of ``surgeon.Pruner``

    Examples
    --------
    >>> from surgeon.integrations.transformers import PrunerCallback
    >>> schedule = surgeon.schedule.gradual(flops=0.6, steps=1000, every=100)
    >>> callback = PrunerCallback(model, {"input_ids": ids}, schedule)
    >>> Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()

    To go on, make model and callback as before, and let the callback load before the trainer does:

    >>> callback.load("out/checkpoint-500")
    >>> Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train("out/checkpoint-500")
    """

    def __init__(
        self, model: nn.Module, example_inputs: Any, schedule: Schedule, *, ema: Any = None, **options: Any
    ) -> None:
        self.ema = ema
        self.pruner = Pruner(model, example_inputs, schedule, optimizer=None, **options)

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Cut the model as far as it was when a checkpoint was saved, so that the checkpoint's weights fit.

        Raises
        ------
        FileError where the folder holds no state of a pruner
        """
        self.pruner.load_state_dict(read(folder))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Take the optimizer along, which exists by now."""
        if given["model"] is not self.pruner.model:
            raise PrunerError("the Trainer trains another model than the one that PrunerCallback was given")
        if args.world_size > 1:
            raise PrunerError(
                f"the Trainer runs {args.world_size} processes, and does not wrap a model anew after a cut; train on "
                "one device, or with surgeon.Pruner in a loop of your own"
            )
        if args.load_best_model_at_end:
            raise PrunerError(
                "load_best_model_at_end would load the weights of a checkpoint into a model that was cut further "
                "since; turn it off, and read the best checkpoint with PrunerCallback.load and a Trainer of its own"
            )
        if state.global_step != self.pruner.taken:
            raise PrunerError(
                f"training goes on at step {state.global_step}, and the pruner is at step {self.pruner.taken}; call "
                "PrunerCallback.load(folder) with the checkpoint's folder before the Trainer resumes from it"
            )
        self.pruner.attach(given["optimizer"], self.ema)
        device = next(given["model"].parameters()).device
        self.pruner.example_inputs = moved(self.pruner.example_inputs, device)

    def on_pre_optimizer_step(self, *args: Any, **given: Any) -> None:
        """Add the gradients of the regularizer."""
        if self.pruner.pressure is not None:
            self.pruner.regularize()

    def on_optimizer_step(self, *args: Any, **given: Any) -> None:
        """Count a training step, while gradients are still there, and cut if one is due."""
        self.pruner.step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Write the pruner's state next to the checkpoint."""
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            write(self.pruner, folder)


__all__ = ["FILE", "PrunerCallback"]
