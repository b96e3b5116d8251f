"""Tables and the page of the zoo, made from the rows that were kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Row = dict[str, Any]
UNCOUNTED = ("model fails", "memory")


def merged(rows: Iterable[Row]) -> list[Row]:
    """Put both sides of a model into one line of the table."""
    models: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        models.setdefault((row["collection"], row["name"]), {})[row["side"]] = row
    return [_line(key, sides.get("surgeon", {}), sides.get("torch-pruning", {})) for key, sides in models.items()]


def _line(key: tuple[str, str], mine: Row, peer: Row) -> Row:
    return {
        "collection": key[0],
        "model": key[1],
        "surgeon": mine.get("outcome", "-"),
        "difference": mine.get("difference", "-"),
        "dtype": mine.get("dtype", "-"),
        "pinned share": _percent(mine.get("pinned")),
        "parameters": _large(mine.get("params")),
        "parameters left": _ratio(mine, "params"),
        "FLOPs": _large(mine.get("flops")),
        "FLOPs left": _ratio(mine, "flops"),
        "ops": mine.get("ops", "-"),
        "forward s": mine.get("forward_s", "-"),
        "analysis s": mine.get("analysis_s", "-"),
        "torch-pruning": peer.get("outcome", "-"),
        "its parameters left": _ratio(peer, "params"),
    }


def totals(rows: Sequence[Row]) -> list[Row]:
    """Count outcomes per collection; models that fail by themselves don't count."""
    collections = list(dict.fromkeys(row["collection"] for row in rows))
    return [_total(name, [r for r in rows if r["collection"] == name]) for name in collections] + [_total("all", rows)]


def _total(name: str, rows: Sequence[Row]) -> Row:
    mine = [r for r in rows if r["side"] == "surgeon" and r["outcome"] not in UNCOUNTED]
    counted = {(r["collection"], r["name"]) for r in mine}
    peer = Counter(
        r["outcome"] for r in rows if r["side"] == "torch-pruning" and (r["collection"], r["name"]) in counted
    )
    ours = Counter(r["outcome"] for r in mine)
    pinned = [r["pinned"] for r in mine if "pinned" in r]
    return {
        "collection": name,
        "models": len(mine),
        "verified": ours["verified"],
        "differs": ours["differs"],
        "others": len(mine) - ours["verified"] - ours["differs"],
        "mean pinned share": _percent(sum(pinned) / len(pinned) if pinned else None),
        "tried with torch-pruning": sum(peer.values()),
        "equal": peer["equal"],
        "runs": peer["runs"],
        "differs, breaks or fails": sum(peer.values()) - peer["equal"] - peer["runs"],
    }


def page(rows: Sequence[Row], environment: str) -> str:
    """Write ``docs/zoo.md``: what was tried, totals, all that failed, what is pinned, and the whole table."""
    parts = [
        "# The zoo",
        "",
        "This page is written by `make zoo`. Each model is cut in half at random with `surgeon.plan(..., ratio=0.5,",
        'scope="local")`, with random weights and batch statistics, and proved against the masked original in float64,',
        "in a process of its own. The pinned share is the share of the FLOPs in calls that no legal cut makes cheaper.",
        "Analysis is the time of `surgeon.trace` less the model's own forward pass.",
        "",
        "torch-pruning 1.6.1 cuts the same models as its README shows: `BasePruner`, `MagnitudeImportance`,",
        "`pruning_ratio=0.5`, layers as wide as the output left out. *equal*: it runs, and computes what the masked",
        "original computes; *runs*: it runs in eval and in training mode, and zeros can't tell whether it is right,",
        "since norms or softmax run over the width; *differs*: it runs and computes something else.",
        "",
        "A dash means that a model was not tried.",
        "",
        f"Measured with {environment}.",
        "",
        "## Totals",
        "",
        *table(totals(rows)),
        "",
        "## What surgeon did not prove",
        "",
        *_failures(rows, "surgeon"),
        "",
        "## Operations without a rule",
        "",
        *_unknown(rows),
        "",
        "## What pins FLOPs",
        "",
        *_pins(rows),
        "",
        "## What torch-pruning did not get through",
        "",
        *_failures(rows, "torch-pruning"),
        "",
        "## All models",
        "",
        *table(merged(rows)),
    ]
    return "\n".join(parts) + "\n"


def _failures(rows: Sequence[Row], side: str) -> list[str]:
    sound = ("verified", "equal", "runs")
    failed = [r for r in rows if r["side"] == side and r["outcome"] not in sound]
    found = [
        f"- {r['collection']}/{r['name']}: {r['outcome']}{': ' if r.get('reason') else ''}{_plain(r.get('reason', ''))}"
        for r in failed
    ]
    return found or ["None."]


def _unknown(rows: Sequence[Row]) -> list[str]:
    seen: dict[str, list[str]] = {}
    for row in rows:
        for op in row.get("unknown") or ():
            seen.setdefault(op, []).append(row["name"])
    return [f"- {_plain(op)}: {', '.join(sorted(names))}" for op, names in sorted(seen.items())] or ["None."]


def _pins(rows: Sequence[Row]) -> list[str]:
    weight, models = Counter[str](), Counter[str]()
    for row in rows:
        for reason, share in row.get("pins") or ():
            weight[reason] += share
            models[reason] += 1
    mean = [
        f"- {_plain(reason)}: {_percent(share / models[reason])} of {models[reason]} models"
        for reason, share in weight.most_common(40)
    ]
    return mean or ["None."]


def table(rows: Sequence[Row]) -> list[str]:
    """Lay rows out as a Markdown table."""
    columns = list(rows[0])
    return list(_table_lines(rows, columns))


def _table_lines(rows: Sequence[Row], columns: Sequence[str]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(_text(row[c]) for c in columns) + " |"


def _text(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("<", "(").replace(">", ")").replace("`", "'")[:300]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


def _ratio(row: Row, name: str) -> str:
    before, after = row.get(name), row.get(f"{name}_after")
    return "-" if not before or after is None else f"{100 * after / before:.0f}%"


def _large(number: float | None) -> str:
    if number is None:
        return "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
