"""Count a model before and after."""

from __future__ import annotations

from typing import Any

from torch import nn

from surgeon.modules import Model, bare
from surgeon.plan.plan import Plan
from surgeon.report.records import GroupRow, Latency, LayerRow, Totals, environment
from surgeon.report.report import Report
from surgeon.verify.count import Count, count_flops
from surgeon.verify.verify import Proof


def compare(
    model: Model,
    small: Model,
    example_inputs: Any,
    *,
    plan: Plan | None = None,
    proof: Proof | None = None,
    latency: Latency | None = None,
    counts: tuple[Count, Count] | None = None,
) -> Report:
    """Count both models and put them side by side, with what is known beside the counts.

    Parameters
    ----------
    plan : what made the small model: the report then has groups, pins, peak memory and what was out of reach
    proof : what ``verify`` found
    latency : what was measured
    counts : what ``count_flops`` counted for both, where that is known
    """
    model, small = bare(model), bare(small)
    method = plan.method if plan is not None else "forward"
    before, after = counts or tuple(count_flops(m, example_inputs, method=method) for m in (model, small))
    memory = plan.totals.get("memory", (None, None)) if plan is not None else (None, None)
    rows = _rows(model, small, before, after)
    return Report(
        _totals(model, before, memory[0]),
        _totals(small, after, memory[1]),
        rows,
        model=type(model).__name__,
        uncounted=tuple(sorted(after.uncounted)),
        note=before.failed or after.failed,
        out_of_reach=plan.out_of_reach if plan is not None else {},
        groups=_groups(plan, [row.name for row in rows]) if plan is not None else (),
        pins=plan.pins if plan is not None else {},
        plan=plan,
        proof=proof,
        latency=latency,
        environment=environment(model),
    )


def _rows(model: nn.Module, small: nn.Module, before: Count, after: Count) -> tuple[LayerRow, ...]:
    """Return a row per module that owns parameters, in the order of registration."""
    rows = []
    layers = dict(small.named_modules())
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        new = list(layers[name].parameters(recurse=False)) if name in layers else []
        if own and new:
            shapes = (tuple(own[0].shape), tuple(new[0].shape))
            params = (sum(p.numel() for p in own), sum(p.numel() for p in new))
            flops = (_own_flops(model, name, before), _own_flops(small, name, after))
            rows.append(LayerRow(name, shapes, flops, params, type(module).__name__))
    return tuple(rows)


def _groups(plan: Plan, order: list[str]) -> tuple[GroupRow, ...]:
    """Return a row per group, with its layers in the order of the model."""
    place = {name: i for i, name in enumerate(order)}
    return tuple(
        GroupRow(g.name, (g.size, g.size - g.removed), tuple(sorted(g.layers, key=lambda n: place.get(n, len(place)))))
        for g in plan.groups
    )


def _own_flops(model: nn.Module, name: str, count: Count) -> float:
    """Multiply-adds of a layer without those of its children."""
    children = (f"{name}.{child}" if name else child for child, _ in model.get_submodule(name).named_children())
    return count.by_module.get(name, 0.0) - sum(count.by_module.get(child, 0.0) for child in children)


def _totals(model: nn.Module, count: Count, memory: float | None) -> Totals:
    params = list(model.parameters())
    tensors = {id(t): t for t in (*params, *model.buffers())}.values()
    zero_flops = 0.0
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() > 1 and weight.numel() and not weight.is_meta:
            zeros = 1 - int(weight.detach().count_nonzero()) / weight.numel()
            zero_flops += zeros * _own_flops(model, name, count) if zeros else 0.0
    return Totals(
        flops=count.total,
        params=sum(p.numel() for p in params),
        bytes=sum(t.numel() * t.element_size() for t in tensors),
        nonzero_flops=count.total - zero_flops,
        # Weights on the meta device have no values: all count.
        nonzero_params=sum(p.numel() if p.is_meta else int(p.detach().count_nonzero()) for p in params),
        memory=memory,
    )
