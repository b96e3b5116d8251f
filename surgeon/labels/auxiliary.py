"""Branches that only run in training mode: a second pass, which does not compute again what the first one saw."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import SurgeonError
from surgeon.labels.family import Family, Value
from surgeon.labels.flow import Flow
from surgeon.trace import record
from surgeon.trace.integers import Ledger


def auxiliary(model: nn.Module, example_inputs: Any, flow: Flow, calls: int, entries: Ledger) -> Ledger:
    """Record what runs in training mode if there are parameters that no call has used; returns all ledger entries.

    Auxiliary heads so stay in step with the layers that they read. If the pass fails, they are left alone.
    """
    parameters = {name for name, _ in model.named_parameters()}
    if not any(value.unbound for name, value in flow.leaves.items() if name in parameters):
        return entries
    for recall in (Recall(flow), None):
        try:
            output, more, _ = record(model, example_inputs, flow, training=True, start=calls, recall=recall)
        except SurgeonError:
            continue  # what computes on zeros may fail where it would not on data
        flow.take(output)
        every = entries.comparisons + more.comparisons, entries.escapes + more.escapes, entries.powers + more.powers
        return Ledger(*every)
    return entries


class Recall:
    """Gives results of layers that run again on what they ran on before: zeros with the labels of the first time.

    Of a layer that was a single call, given the same labels, a second pass learns nothing new. Only torch's own are
    known to give what that call gave, and to do nothing beside.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        calls = Counter(op.module for op in flow.ops)
        self.known = {op.module: i for i, op in enumerate(flow.ops) if calls[op.module] == 1 and not op.inplace}

    def __call__(self, path: str, module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        at = self.known.get(path)
        if at is None or module._modules or module._forward_hooks or module._forward_pre_hooks:
            return None
        if "forward" in vars(module) or not type(module).forward.__module__.startswith("torch.nn.modules."):
            return None
        op = self.flow.ops[at]
        if len(args) != 1 or len(op.results) != 1 or not isinstance(args[0], Tensor) or not self._same(args[0], at):
            return None
        shape, families = op.results[0]
        result = torch.zeros(shape, dtype=args[0].dtype, device=args[0].device)
        self.flow.values[result] = Value(shape, list(families), maker=at, upstream=frozenset({path}))
        return result

    def _same(self, tensor: Tensor, at: int) -> bool:
        """Whether the first operand of an op had the labels of this tensor."""
        given, value = self.flow.ops[at].operands[0], self.flow.look(tensor)
        if given is None or not tensor.is_floating_point() or given[0] != value.shape:
            return False
        return len(given[1]) == len(value.families) and all(map(_equal, given[1], value.families))


def _equal(a: Family, b: Family) -> bool:
    return a is b or (len(a.dims) == 1 and a.dims == b.dims and torch.equal(a.labels, b.labels))
