"""Cut one model with surgeon, in half and at random, and say what became of it."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

import surgeon
from benchmarks.zoo_parts.subject import Subject, told, trains
from surgeon.errors import NothingPrunable, SurgeonError, VerificationError
from surgeon.graph import DependencyGraph
from surgeon.plan.plan import Plan
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
        return row | {"outcome": "nothing prunable", "reason": told(refusal), "pinned": 1.0}
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
    plan = surgeon.plan(graph, surgeon.score(graph, "random"), ratio=0.5, scope="local")
    row["pinned"], row["pins"] = sum(plan.out_of_reach.values()), pins(plan)
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


def pins(plan: Plan) -> list[tuple[str, float]]:
    """Return the shares of the FLOPs that were out of reach, by reason without places in the code."""
    parts = Counter[str]()
    for reason, share in plan.out_of_reach.items():
        parts[_short(reason)] += share
    return [(text, share) for text, share in parts.most_common(6) if share >= 0.001]


def _short(reason: str) -> str:
    """Leave out file names, module paths and numbers, so that equal reasons read alike."""
    text = re.sub(r", at .*$| in [\w.]+ \(\S+\.py:\d+.*$|\S+\.py:\d+(: )?", "", reason)
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
