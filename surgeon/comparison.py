"""Compare two models, measured as well as counted."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from surgeon.latency import measure
from surgeon.modules import Model
from surgeon.plan import Plan
from surgeon.report import Latency, Report
from surgeon.report import compare as side_by_side
from surgeon.verify import Proof


def compare(
    model: Model,
    small: Model,
    example_inputs: Any,
    *,
    plan: Plan | None = None,
    proof: Proof | None = None,
    latency: bool | str = False,
) -> Report:
    """Count both models, layer by layer, and put them side by side.

    Parameters
    ----------
    model, small : before and after: modules, exported programs, or paths of saved ones
    example_inputs : what both are run on
    plan : what made the small model: the report then tells groups, what stays and why, and peak activation memory
    proof : what ``verify`` returned
    latency : measure both in turn, too: True, or what runs them: "eager", "compile" or "onnxruntime"

    Raises
    ------
    BudgetError for a back end that does not exist, UnsupportedModel where it can't run the models.

    Examples
    --------
    >>> print(surgeon.compare(model, small, x))
    >>> print(surgeon.compare(model, result.model, x, plan=result.plan, proof=result.proof, latency=True))
    """
    timed = None
    if latency:
        backend = "eager" if latency is True else latency
        method = plan.method if plan is not None else "forward"
        found = measure(model, small, example_inputs=example_inputs, backend=backend, method=method)
        seconds, ratio, spread = ((values[0], values[1]) for values in (found.seconds, found.ratios, found.spread))
        timed = Latency(seconds, ratio[1], backend, spread[1], found.runs, found.device, found.threads)
    return side_by_side(model, small, example_inputs, plan=plan, proof=proof, latency=timed)


def within(made: Plan, model: nn.Module) -> Latency | None:
    """Return what was measured to keep a bound on latency, where there was one."""
    seconds = made.totals.get("latency")
    if seconds is None:
        return None
    where = next((t.device.type for t in model.parameters()), "cpu")
    backend = str(made.settings.get("latency_backend", "eager"))
    return Latency(seconds, seconds[1] / seconds[0], backend, device=where, threads=torch.get_num_threads())
