"""The verbs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from surgeon.errors import BudgetError
from surgeon.graph import DependencyGraph
from surgeon.labels.run import run
from surgeon.modules import Model, bare, entering, uncollected
from surgeon.operate import operate
from surgeon.plan import Plan
from surgeon.plan import plan as make_plan
from surgeon.report import Report, compare
from surgeon.score import score
from surgeon.verify import Proof, count_flops, verify


@dataclass(frozen=True)
class Result:
    """What ``prune`` returns: the small model, the plan that made it, the proof, and the report."""

    model: nn.Module | ExportedProgram
    plan: Plan
    proof: Proof | None
    report: Report

    def __str__(self) -> str:
        return f"{self.plan}\n{self.proof or 'not verified'}"


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
    criterion: Any = "l1",
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
    criterion : a name such as "l1", or a callable ``(graph, group) -> Tensor[units]``
    keep : layers to leave as they are
    check : prove the result against the masked original
    method : what to run instead of ``forward``
    budget : ``flops``, ``params`` (what may remain), ``ratio`` (what goes), ``scope``, ``round_to``, ``floor``,
        ``groups``, ``heads``: see ``plan``

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
    graph = trace(model, example_inputs, keep=keep, method=method)
    graph.require_free()
    plan = make_plan(graph, score(graph, criterion), **budget)
    small = operate(model, plan)
    counts = (count_flops(model, example_inputs, method=method), count_flops(small, example_inputs, method=method))
    proof = verify(model, small, plan, example_inputs, counts=counts) if check else None
    return Result(small, plan, proof, compare(model, small, example_inputs, plan=plan, counts=counts))


def _check_names(budget: dict[str, Any]) -> None:
    known = [name for name, p in signature(make_plan).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in budget:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise BudgetError(f"unknown option {name!r}{hint}")
        if isinstance(budget[name], (list, tuple)):
            raise BudgetError(
                f"{name}={budget[name]!r}: prune makes one model; surgeon.plan makes nested plans of a list"
            )
