"""Cut one model with surgeon, in half and at random, and say what became of it."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import surgeon
from benchmarks.zoo_parts.subject import Subject, told, trains
from surgeon.errors import NothingPrunable, SurgeonError, VerificationError
from surgeon.graph import DependencyGraph
from surgeon.plan.cost import flops
from surgeon.verify.count import Count

Row = dict[str, Any]
UNCOUNTED = (Count(float("nan")), Count(float("nan")))


def ours(subject: Subject) -> Row:
    """Return the row of one model: trace, plan, operate and verify, each step timed."""
    row: Row = {"params": sum(p.numel() for p in subject.model.parameters())}
    row["forward_s"] = _seconds(subject.run)
    try:
        row |= _cut(subject, row)
    except NothingPrunable as refusal:
        return row | {"outcome": "nothing prunable", "reason": told(refusal)}
    except VerificationError as difference:
        return row | {"outcome": "differs", "reason": told(difference)}
    except SurgeonError as refusal:
        return row | {"outcome": "refused", "reason": f"{type(refusal).__name__}: {told(refusal)}"}
    except Exception as crash:
        return row | {"outcome": "error", "reason": f"{type(crash).__name__}: {told(crash)}{_at(crash)}"}
    return row


def _cut(subject: Subject, row: Row) -> Row:
    start = time.perf_counter()
    graph = surgeon.trace(subject.model, subject.inputs)
    row["analysis_s"] = max(0.0, time.perf_counter() - start - row["forward_s"])
    row["ops"] = len(graph.nodes)
    row["unknown"] = dict(Counter(graph_op(graph, at) for at in graph.flow.unknown_ops))
    row["pinned"], row["pins"] = out_of_reach(graph)
    plan = surgeon.plan(graph, surgeon.score(graph, "random"), ratio=0.5, scope="local")
    small = surgeon.operate(subject.model, plan)
    row["flops"], row["flops_after"] = plan.totals["flops"]
    row["params_after"] = sum(p.numel() for p in small.parameters())
    proof = surgeon.verify(subject.model, small, plan, subject.inputs, counts=UNCOUNTED)
    row |= {"difference": proof.difference, "dtype": proof.dtype, "note": proof.note}
    problem = trains(small, subject) if subject.trains else ""
    row["training"] = "not tried" if not subject.trains else problem or "runs"
    if problem:
        return {"outcome": "breaks training", "reason": problem}
    return {"outcome": "verified", "reason": ""}


def graph_op(graph: DependencyGraph, call: int) -> str:
    """Return the name of a recorded call and why no rule covers it."""
    why, _, where = graph.flow.unknown_ops[call].partition(" for ")
    return f"{where.partition(' in ')[0]}: {why}"


def out_of_reach(graph: DependencyGraph) -> tuple[float, list[tuple[str, float]]]:
    """Return the share of the FLOPs in calls that no free group makes cheaper, and its parts by reason."""
    cost = flops(graph)
    values = cost.terms(graph.initial)
    free = np.zeros(len(graph.initial), bool)
    for group in graph.free:
        free[list(group.touched)] = True
    shrinks = np.concatenate([[False], free[cost.count]])[cost.factors].any(axis=1)
    total, parts = values.sum() or 1.0, Counter[str]()
    why = _reasons(graph)
    for value, owner in zip(values[~shrinks], cost.owner[~shrinks]):
        node = graph.nodes[int(owner)]
        found = next((why[name] for name in node.parameters if name in why), f"{node.name} between pinned layers")
        parts[found] += float(value) / total
    return sum(parts.values()), [(text, share) for text, share in parts.most_common(6) if share >= 0.001]


def _reasons(graph: DependencyGraph) -> dict[str, str]:
    """Map parameters to the reason why their outputs, or else their inputs, are pinned, without places in the code."""
    found: dict[str, str] = {}
    for side in ("out", "in"):
        for group in graph.groups:
            for place in group.members:
                if group.pinned is not None and side in place.sides:
                    found.setdefault(place.parameter, _short(group.pinned.text))
    return found


def _short(reason: str) -> str:
    """Leave out file names, module paths and numbers, so that equal reasons read alike."""
    text = re.sub(r" in [\w.]+ \(|\(\S+\.py:\d+: ", " (", reason)
    text = re.sub(r"\S+\.py:\d+(: )?", "", text)
    return re.sub(r"\b\d+\b", "N", text)[:160]


def _seconds(work: Callable[[], Any]) -> float:
    work()
    start = time.perf_counter()
    with torch.no_grad():
        work()
    return time.perf_counter() - start


def _at(error: Exception) -> str:
    trail = error.__traceback__
    while trail is not None and trail.tb_next is not None:
        trail = trail.tb_next
    return f" ({trail.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trail.tb_lineno})" if trail else ""
