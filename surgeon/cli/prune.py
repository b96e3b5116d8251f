"""``surgeon prune``: from a model and a budget to a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from surgeon.api import plan as make_plan
from surgeon.api import trace
from surgeon.cli import options
from surgeon.cli.answer import WIDTH, Answer, dumps, note, step
from surgeon.cli.folder import published, require_free
from surgeon.cli.small import PLAN, PROGRAM, WEIGHTS, Subject, subject
from surgeon.deploy import export, save
from surgeon.deploy.formats import ONNX, required
from surgeon.dissect import dissect
from surgeon.errors import ExportError
from surgeon.operate import operate
from surgeon.plan import Plan
from surgeon.report import Report, compare
from surgeon.score import score
from surgeon.verify import Proof, count_flops, verify

MODEL = "model.onnx"

EXAMPLES = """
surgeon prune torchvision:resnet50 --flops 0.5 --out small/
surgeon prune net:make --weights net.pt --input 1x3x32x32 --params 0.4 --out s/
surgeon prune hf:./bert --ratio 0.3 --heads rows --uniform --no-onnx --out small/
surgeon prune net.pt2 --latency 8ms --round-to 8 --keep 'head*' --out small/
"""


def prune(
    model: options.ModelName,
    out: Annotated[Path, typer.Option(help="folder to write plan, weights, ONNX file and report to")],
    arg: options.Arguments = None,
    weights: options.Weights = None,
    input: options.Inputs = None,
    flops: options.Flops = None,
    params: options.Params = None,
    memory: options.Memory = None,
    latency: options.Latency = None,
    latency_backend: options.LatencyBackend = "eager",
    ratio: options.Ratio = None,
    scope: options.Scope = "global",
    round_to: options.RoundTo = "1",
    floor: options.Floor = 0.1,
    group: options.Groups = None,
    heads: options.Heads = "columns",
    uniform: options.Uniform = False,
    keep: options.Keep = None,
    criterion: options.Criterion = "l1",
    method: options.Method = "forward",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    onnx: Annotated[bool, typer.Option(help="write an ONNX file, checked in ONNX Runtime")] = True,
    force: Annotated[bool, typer.Option("--force", help="replace what an earlier run wrote to the folder")] = False,
    as_json: options.AsJson = False,
) -> Answer:
    """Cut a model to a budget, prove the cut right, and write the result to a folder.

    Budgets say how much may remain, a ratio how much goes. The folder gets plan.json, model.safetensors (model.pt2 for
    an exported program), model.onnx and the report (report.html, report.json, report.txt), all or none.
    """
    budget = {
        "flops": options.amount(flops),
        "params": options.amount(params),
        "memory": options.amount(memory),
        "ratio": ratio,
        "scope": scope,
        "round_to": options.multiple(round_to),
        "floor": floor,
        "groups": options.limits(group or ()),
        "heads": {"columns": False, "rows": True, "both": "both"}[heads],
        "uniform": uniform,
    }
    if all(asked is None for asked in (flops, params, memory, latency, ratio)):
        raise typer.BadParameter("say how much: --flops 0.5, --params 0.5, --memory 0.5, --latency 0.6 or --ratio 0.5")
    if latency is not None:
        budget |= {"latency": options.amount(latency), "latency_backend": latency_backend}
    require_free(out, force, (weights,))
    if onnx:
        required(*ONNX, "onnx", "onnxscript", "onnxruntime")
    given = subject(model, arg, weights, input, seed, device)
    require_free(out, force, (weights, given.reference.source))
    small, made, proof, report = _cut(given, budget, options.kept(keep or ()), criterion, method, seed)
    return _written(out, given, small, made, proof, report, onnx)


def _cut(
    given: Subject, budget: Mapping[str, Any], keep: Any, criterion: str, method: str, seed: int
) -> tuple[Any, Plan, Proof, Report]:
    """Do what ``surgeon.prune`` does, and tell what is being done."""
    with step("tracing"):
        graph = trace(given.model, given.inputs, keep=keep, method=method)
    graph.require_free()
    choices = {"random": {"seed": seed}, "synflow": {"example_inputs": given.inputs}}.get(criterion, {})
    with step("scoring"):
        scores = score(graph, criterion, **choices)
    with step("choosing what goes"):
        made = make_plan(graph, scores, **budget)
    assert isinstance(made, Plan)  # as for any single budget
    with step("cutting"):
        small = operate(given.model, made)
    with step("counting"):
        counts = (
            count_flops(given.model, given.inputs, method=method),
            count_flops(small, given.inputs, method=method),
        )
    with step("proving"):
        proof = verify(given.model, small, made, given.inputs, counts=counts)
    report = compare(given.model, small, given.inputs, plan=made, proof=proof, counts=counts)
    return small, made, proof, replace(report, anatomy=dissect(graph, scores, made))


def _written(out: Path, given: Subject, small: Any, made: Plan, proof: Proof, report: Report, onnx: bool) -> Answer:
    """Write the folder; where only the ONNX file can't be made, everything else is written before that is said."""
    failed: ExportError | None = None
    exported: dict[str, Any] | None = None
    facts: dict[str, Any] = {"model": given.reference.text, **figures(made, proof)}
    with published(out) as folder:
        with step("writing"):
            reason = _save(small, made, folder, given)
        if onnx:
            try:
                with step("exporting to ONNX"):
                    done = export(small, folder / MODEL, given.inputs)
                exported = {"difference": done.difference, "checked": list(done.checked)}
            except ExportError as error:
                failed = error
        text = f"{made}\n{proof}\n{report.text(layers=None, width=WIDTH, ascii_only=False)}\n"
        report.to_html(folder / "report.html")
        (folder / "report.txt").write_text(text, encoding="utf-8")
        facts |= {"onnx": exported, "needs_plan": reason, "report": report.document(plan=False)}
        (folder / "report.json").write_text(dumps(facts) + "\n", encoding="utf-8")
        made.save(folder / PLAN)
        files = sorted(path.name for path in folder.iterdir())
    if reason:
        note(f"{out} loads with surgeon.load({str(out)!r}), and not with from_pretrained: {reason}")
    if failed is not None:
        raise ExportError(f"{failed}; everything else is in {out}, and --no-onnx leaves this file out") from failed
    sizes = ", ".join(f"{name} ({(out / name).stat().st_size / 1e6:.3g} MB)" for name in files)
    document = {"out": str(out), "files": files, **facts}
    return Answer(document, (str(made), str(proof), report, f"{out}: {sizes}"))


def _save(small: Any, made: Plan, folder: Path, given: Subject) -> str:
    """Write the weights; return why a folder of transformers loads with ``surgeon.load`` only, if it does."""
    if not isinstance(small, nn.Module):
        torch.export.save(small, folder / PROGRAM)
        return ""
    if given.reference.source is None:
        save(small, made, folder / WEIGHTS)
        return ""
    return save(small, made, folder, example_inputs=given.inputs).needs_plan


def figures(made: Plan, proof: Proof | None = None) -> dict[str, Any]:
    """Return what a plan does, and its proof, for a document."""
    return {
        "units": {"before": sum(g.size for g in made.groups), "removed": sum(g.removed for g in made.groups)},
        "groups": [{"name": g.name, "size": g.size, "removed": g.removed} for g in made.groups],
        "totals": {name: {"before": pair[0], "after": pair[1]} for name, pair in made.totals.items()},
        "gap": made.gap,
        "proof": None if proof is None else asdict(proof),
    }
