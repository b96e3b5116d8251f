"""A plan from torch-pruning's history of a pruning."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn

from surgeon.api import trace
from surgeon.convert.pair import matched, tensors
from surgeon.errors import ConvertError
from surgeon.modules import bare
from surgeon.plan.plan import Plan


def plan_from_history(
    model: nn.Module, history: Sequence[Any], example_inputs: Any, *, method: str = "forward"
) -> Plan:
    """Return the plan that does what torch-pruning did.

    torch-pruning replays its history on a copy of the model whose weights are numbered; the numbers that are left say
    what was cut.

    Parameters
    ----------
    model : the architecture before it was pruned; its weights don't matter
    history : what ``pruning_history()`` of torch-pruning's pruner or ``DependencyGraph`` returned
    example_inputs : as for ``trace``

    Raises
    ------
    ConvertError where torch-pruning is missing, or can't replay the history, or cut what surgeon takes to stay

    Examples
    --------
    >>> plan = surgeon.plan_from_history(resnet50(), pruner.pruning_history(), torch.randn(1, 3, 224, 224))
    """
    model = bare(model)
    try:
        torch_pruning = import_module("torch_pruning")
    except ImportError as error:
        raise ConvertError(f"replaying its history needs torch-pruning: pip install torch-pruning ({error})") from error
    graph = trace(model, example_inputs, method=method)
    whole, pruned = copy.deepcopy(model), copy.deepcopy(model).requires_grad_(True)
    _number(whole)
    try:
        with warnings.catch_warnings(), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            dependencies = torch_pruning.DependencyGraph()
            dependencies.build_dependency(pruned, example_inputs=example_inputs, verbose=False)
            _number(pruned)
            dependencies.load_pruning_history([list(entry) for entry in history])
    except Exception as error:
        raise ConvertError(
            f"torch-pruning can't replay this history on {type(model).__name__} ({type(error).__name__}: {error}); "
            "give the architecture as it was before the first cut"
        ) from error
    return matched(whole, pruned, tensors(whole), tensors(pruned), graph, (), {"source": "history"})


def _number(model: nn.Module) -> None:
    """Give every position of every tensor its number; 2**53 are told apart."""
    for tensor in tensors(model).values():
        tensor.data = torch.arange(tensor.numel(), dtype=torch.float64).view(tensor.shape)
