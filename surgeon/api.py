"""The verbs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from surgeon.calibrate import calibration
from surgeon.errors import BudgetError
from surgeon.graph import DependencyGraph
from surgeon.labels.run import run
from surgeon.modules import Model, bare, entering, uncollected
from surgeon.operate import operate
from surgeon.plan import Plan
from surgeon.plan import plan as make_plan
from surgeon.recover import Recovery, check_method, recover
from surgeon.report import Report, compare
from surgeon.score import curves, score
from surgeon.verify import Proof, count_flops, verify

# Calibration samples that are read at most.
SAMPLES = 512


@dataclass(frozen=True)
class Result:
    """What ``prune`` returns: the small model, the plan that made it, the proof, the report, and the compensation."""

    model: nn.Module | ExportedProgram
    plan: Plan
    proof: Proof | None
    report: Report
    recovery: Recovery | None = None

    def __str__(self) -> str:
        recovery = f"\n{self.recovery}" if self.recovery else ""
        return f"{self.plan}\n{self.proof or 'not verified'}{recovery}"


def trace(model: Model, example_inputs: Any, *, keep: Iterable[Any] = (), method: str = "forward") -> DependencyGraph:
    """Run the model once and return what is coupled with what.

    Parameters
    ----------
    model : a module, a ``torch.export.ExportedProgram``, or the path of a ``.pt2`` file
    example_inputs : a tensor, a tuple of positional arguments, or a dict of keyword arguments
    keep : layers to leave as they are: names, globs, modules, or ``{"out": ..., "in": ...}`` to keep only the outputs
        or inputs of a layer
    method : what to run instead of ``forward``, such as "encode"; layers that it does not use stay as they are

    Raises
    ------
    TraceError when the forward fails, UnsupportedModel, UnknownLayer

    Examples
    --------
    >>> graph = surgeon.trace(model, torch.randn(1, 3, 224, 224), keep=("head",))
    >>> print(graph.explain("layer3.0.conv1"))
    """
    model = bare(model)
    with uncollected(), entering(method, model):
        recorded = run(model, example_inputs, keep)
        return DependencyGraph(model, recorded, method)


def prune(
    model: Model,
    example_inputs: Any,
    *,
    criterion: Any = None,
    data: Iterable[Any] | None = None,
    compensate: str | None = "auto",
    keep: Iterable[Any] = (),
    check: bool = True,
    method: str = "forward",
    **budget: Any,
) -> Result:
    """Cut a model to a budget, prove the cut right, and report; the original is untouched.

    Parameters
    ----------
    model : a module, a ``torch.export.ExportedProgram``, or the path of a ``.pt2`` file; an exported program gives an
        exported program
    criterion : a name such as "l1", or a callable ``(graph, group) -> Tensor[units]``; "l1" where there is no data to
        compensate with, and "obs" with widths from measured loss curves where there is
    data : some batches without labels; 128 to 512 samples are enough
    compensate : how to win back what the cut loses, after the proof: "auto" (refit with data, nothing without),
        "ridge", "bias", "merge", "noise", "norms" or None: see ``recover``
    keep : layers to leave as they are
    check : prove the result against the masked original
    method : what to run instead of ``forward``
    budget : ``flops``, ``params`` (what may remain), ``ratio`` (what goes), ``scope``, ``round_to``, ``floor``,
        ``groups``: see ``plan``

    Raises
    ------
    SurgeonError and its kinds, each with what to do next.

    Examples
    --------
    >>> result = surgeon.prune(model, x, flops=0.5)
    >>> result.model, result.plan, result.proof, result.report
    """
    model = bare(model)
    _check_names(budget)
    if compensate is not None:
        check_method(compensate)
    graph = trace(model, example_inputs, keep=keep, method=method)
    graph.require_free()
    how = None if compensate == "auto" and data is None else compensate
    batches = None if data is None else [(given,) for given in calibration(data, SAMPLES)]
    scores = _scores(graph, criterion, batches if how in ("auto", "ridge") else None, budget)
    plan = make_plan(graph, scores, **budget)
    small = operate(model, plan)
    counts = (count_flops(model, example_inputs, method=method), count_flops(small, example_inputs, method=method))
    proof = verify(model, small, plan, example_inputs, counts=counts) if check else None
    recovery = recover(model, small, plan, batches, method=how, example_inputs=example_inputs) if how else None
    return Result(small, plan, proof, compare(model, small, example_inputs, plan=plan, counts=counts), recovery)


def _scores(graph: DependencyGraph, criterion: Any, batches: list[Any] | None, budget: dict[str, Any]) -> Any:
    """Score by what a refit can't make up for where there is one, and let measured curves decide about widths."""
    if criterion is not None or batches is None:
        return score(graph, criterion or "l1")
    scores = score(graph, "obs", data=batches)
    if budget.get("ratio") is None and budget.get("losses") is None:
        budget["losses"] = curves(graph, scores, batches)
    return scores


def _check_names(budget: dict[str, Any]) -> None:
    known = [name for name, p in signature(make_plan).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in budget:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise BudgetError(f"unknown option {name!r}{hint}")
