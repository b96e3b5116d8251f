"""A pruner for loops that Accelerate prepared."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from torch import nn

from surgeon.errors import PrunerError
from surgeon.finetune.batch import moved
from surgeon.integrations.state import read, write
from surgeon.pruner import Pruner
from surgeon.schedule import Schedule


def prepared(
    accelerator: Accelerator,
    model: nn.Module,
    example_inputs: Any,
    schedule: Schedule,
    *,
    optimizer: Any,
    **options: Any,
) -> Pruner:
    """Return a pruner for a model and an optimizer that ``accelerator.prepare`` returned.

    ``accelerator.save_state`` writes the pruner's state into the folder, and ``load_state`` cuts the model as far
    before it loads weights. Schedulers go on.

    Parameters
    ----------
    model, optimizer : as prepared
    example_inputs : for ``surgeon.trace``
    options : of ``surgeon.Pruner``

    Raises
    ------
    PrunerError for several processes, and what ``surgeon.Pruner`` raises

    Examples
    --------
    >>> from surgeon.integrations.accelerate import prepared
    >>> model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    >>> pruner = prepared(accelerator, model, x, schedule, optimizer=optimizer)
    >>> for batch in loader:
    ...     with accelerator.accumulate(model):
    ...         accelerator.backward(loss(model, batch))
    ...         optimizer.step()
    ...         if accelerator.sync_gradients:
    ...             pruner.step()
    ...         optimizer.zero_grad()
    """
    if accelerator.num_processes > 1:
        raise PrunerError(
            f"Accelerate runs {accelerator.num_processes} processes, and prepares a model once; train on one device, "
            "or with surgeon.Pruner in a loop of your own"
        )
    given = moved(example_inputs, accelerator.device)
    pruner = Pruner(accelerator.unwrap_model(model), given, schedule, optimizer=optimizer, **options)

    def save(_models: Any, _weights: Any, folder: str) -> None:
        write(pruner, folder)

    def load(_models: Any, folder: str) -> None:
        pruner.load_state_dict(read(folder))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
    return pruner
