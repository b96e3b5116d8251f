"""A plan from zeros: what masks and sparse training have blanked, cut where that changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.api import trace
from surgeon.convert.removal import removal, steps_taken, visible
from surgeon.convert.silence import listened
from surgeon.errors import ConvertError, NothingPrunable
from surgeon.graph import DependencyGraph
from surgeon.groups import Group
from surgeon.modules import Model, as_arguments, bare, tensors_in
from surgeon.operate import operate
from surgeon.plan.plan import Plan
from surgeon.verify import verify

# Largest difference between the original and the small model, relative to the largest output.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def plan_from_zeros(model: Model, example_inputs: Any, *, keep: Iterable[Any] = (), method: str = "forward") -> Plan:
    """Return the plan that cuts the units of a model that are zero, and leaves its function in eval mode as it is.

    A unit goes where no value that stays takes anything from it, whatever the inputs are: because it is a constant
    zero (its filters are zero, or the weight of its norm is, and no bias, mean or activation makes something else of
    it), or because whatever reads it has weights of zero there. Units that are merely constant stay, as do those that
    were zero on the example only, like a ReLU that happens to be off. Masks of ``torch.nn.utils.prune`` count, whole
    and element by element; the small model still has them.

    Parameters
    ----------
    model, example_inputs, keep, method : as for ``trace``

    Returns
    -------
    Plan; ``plan.settings["skipped"]`` says which zero units stay, and why

    Raises
    ------
    NothingPrunable, with the reasons, where no unit is zero or none of those may go; ConvertError

    Examples
    --------
    >>> from torch.nn.utils import prune
    >>> conv = model.layer3[0].conv1
    >>> prune.ln_structured(conv, "weight", amount=0.5, n=2, dim=0)
    >>> prune.custom_from_mask(conv, "bias", conv.weight_mask[:, 0, 0, 0])
    >>> plan = surgeon.plan_from_zeros(model, torch.randn(1, 3, 224, 224))
    """
    module = bare(model)
    graph = trace(module, example_inputs, keep=keep, method=method)
    graph.require_free()
    candidates = _candidates(graph)
    units, skipped = _inaudible(graph, module, example_inputs, candidates)
    units = _even(graph, units, skipped)
    if not len(units):
        reasons = "\n".join(f"  {line}" for line in skipped) or "  every filter, weight of a norm and column is in use"
        raise NothingPrunable(f"no unit is zero and can go without changing the model's function:\n{reasons}")
    settings = {"source": "zeros", "skipped": skipped, "method": method}
    plan = removal(graph, graph.dead_classes(units) & visible(graph), settings)
    _check(module, plan, example_inputs)
    return plan


# -- which units are zero somewhere --------------------------------------------------------------------


def _candidates(graph: DependencyGraph) -> np.ndarray:
    """Return the units of which some filter, column or weight of a norm is zero throughout."""
    blank = np.zeros(graph.solution.classes, bool)
    for place in graph.places:
        tensor = _effective(graph, place.parameter)
        if tensor is None:
            continue
        rest = [d for d in range(tensor.dim()) if d not in place.dims]
        used = (tensor != 0).amax(dim=rest) if rest else tensor != 0
        weight = used.reshape(-1).cpu().numpy().astype(float)
        here = np.zeros(graph.solution.classes, bool)
        here[place.classes] = True
        blank |= here & (np.bincount(place.classes, weight, graph.solution.classes) == 0)
    hit = np.asarray(graph.solution.closure @ blank.astype(np.int32)) > 0
    mine = np.concatenate([g.units for g in graph.free])
    return mine[hit[mine]]


def _effective(graph: DependencyGraph, name: str) -> Tensor | None:
    """Return the values of a parameter under its mask; None for offsets and statistics, whose zeros say nothing."""
    if name.endswith("bias") or name.endswith("bias_orig"):
        return None
    if name not in graph.parameters and not name.endswith("_mask"):
        return None
    tensor = graph.tensor(name).detach()
    partner = name.removesuffix("_orig") + "_mask" if name.endswith("_orig") else None
    return tensor * graph.tensor(partner).detach() if partner in graph.shapes else tensor


# -- which of them nothing hears -----------------------------------------------------------------------


def _inaudible(
    graph: DependencyGraph, model: nn.Module, example_inputs: Any, units: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Drop units that can be heard until none is left that can, and say where they were heard."""
    reasons: dict[str, dict[str, int]] = {}
    while len(units):
        listener = listened(graph, model, example_inputs, graph.dead_classes(units))
        heard = np.asarray(graph.solution.closure[units] @ listener.heard.astype(np.int32)) > 0
        if not heard.any():
            break
        for unit in units[heard]:
            at = next(c for c in graph.solution.closure[unit].indices if listener.heard[c])
            by_op = reasons.setdefault(_owner(graph, unit).name, {})
            by_op[listener.reasons[int(at)]] = by_op.get(listener.reasons[int(at)], 0) + 1
        units = units[~heard]
    lines = [
        f"{name}: {count} units with zeros stay, since they are not zero where {op} reads them"
        for name, by_op in reasons.items()
        for op, count in by_op.items()
    ]
    return units, lines


def _owner(graph: DependencyGraph, unit: int) -> Group:
    return next(g for g in graph.free if unit in g.units)


def _even(graph: DependencyGraph, units: np.ndarray, skipped: list[str]) -> np.ndarray:
    """Keep as many units of each row as every row of a group can lose, and what a group needs at least."""
    chosen = units
    for group in graph.free:
        taken = np.isin(group.units, chosen)
        gone = graph.dead_classes(chosen)
        steps = steps_taken(graph, group, chosen, gone) if taken.any() else 0
        most = group.size - group.least
        if steps is not None and steps <= most:
            continue
        rows = [row[np.isin(row, chosen)] for row in group.grid]
        fits = min(min(len(mine) * group.size // len(row) for mine, row in zip(rows, group.grid)), most)
        kept = np.concatenate([mine[: fits * len(row) // group.size] for mine, row in zip(rows, group.grid)])
        stay = int(taken.sum()) - len(kept)
        skipped.append(f"{group.name}: {stay} zero units stay, so that rows are even and {group.least} steps are left")
        chosen = np.concatenate([np.setdiff1d(chosen, group.units), kept])
    return np.sort(chosen)


# -- the check at the end --------------------------------------------------------------------------------


def _check(model: nn.Module, plan: Plan, example_inputs: Any) -> None:
    """Prove the cut, and that the original was not changed by it, on the example and on random inputs."""
    small = operate(model, plan)
    verify(model, small, plan, example_inputs)
    for inputs in _inputs(example_inputs):
        difference, dtype = _difference(model, inputs, plan)
        if not difference <= TOLERANCE[dtype]:
            raise ConvertError(
                f"cutting the zero units would change the model's outputs by {difference:.3g} of the largest "
                f"(allowed {TOLERANCE[dtype]:.0e}); keep the layers concerned with keep=, and please report the model"
            )


def _inputs(example_inputs: Any) -> Iterator[Any]:
    yield example_inputs
    args, kwargs = as_arguments(example_inputs)
    generator = torch.Generator().manual_seed(0)

    def random(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)

    yield {k: random(v) for k, v in kwargs.items()} if kwargs else tuple(random(v) for v in args)


def _difference(model: nn.Module, inputs: Any, plan: Plan) -> tuple[float, torch.dtype]:
    """Return how far the two part, in float64 where the model runs in that; it is cut there, before it is rounded."""
    for dtype in (torch.float64, torch.float32):
        try:
            twin = copy.deepcopy(model).to(dtype).eval()
            expected, found = (_outputs(m, inputs, dtype, plan.method) for m in (twin, bare(operate(twin, plan))))
        except Exception:
            if dtype == torch.float32:
                raise
            continue
        worst = 0.0
        for a, b in zip(expected, found):
            if a.is_floating_point() and a.numel():
                worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)))
        return worst, dtype
    raise AssertionError("unreachable")


def _outputs(model: nn.Module, inputs: Any, dtype: torch.dtype, method: str) -> list[Tensor]:
    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    args, kwargs = as_arguments(inputs)
    with torch.no_grad():
        result = getattr(model, method)(*map(cast, args), **{k: cast(v) for k, v in kwargs.items()})
    return list(tensors_in(result))
