"""The graph of layers as a picture, and as text for Graphviz."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import networkx as nx

from surgeon.errors import SurgeonError
from surgeon.marks import fitted

if TYPE_CHECKING:
    from surgeon.groups import Group

# Light colours that black text is read on; groups take turns. What stays is grey.
COLOURS = (
    "#a6cee3", "#fdbf6f", "#b2df8a", "#fb9a99", "#cab2d6", "#ffed6f", "#8dd3c7", "#fccde5", "#bcbddc", "#d9b38c",
    "#9ecae1", "#fdae6b", "#a1d99b", "#f4a6c0", "#c7e9c0", "#e6c229",
)  # fmt: skip
GREY = "#e0e0e0"
ROWS = 32  # layers below each other before a new column starts
WIDE, HIGH, LETTERS = 2.3, 0.34, 26  # a box in inches, and the characters of a name that fit into it


def plottable() -> Any:
    """Return matplotlib's ``Figure``, which needs no display; raises SurgeonError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SurgeonError("plots need matplotlib: pip install 'channel-surgeon[plot]'") from error
    return Figure


def owners(layers: nx.DiGraph, free: Sequence[Group]) -> dict[str, str | None]:
    """Map layers to the group of their outputs, None for those that stay."""
    found: dict[str, str | None] = dict.fromkeys(layers)
    for group in reversed(free):
        found.update({m.layer: group.name for m in group.members if "out" in m.sides and m.layer in found})
    return found


def colours(owners: Mapping[str, str | None]) -> dict[str, str]:
    """Return a colour for every layer: one per group, grey for what is in none.

    Parameters
    ----------
    owners : layer -> the group of its outputs
    """
    # The largest first: those that run through the whole model don't share their colour.
    largest = Counter(filter(None, owners.values())).most_common()
    turn = {group: COLOURS[i % len(COLOURS)] for i, (group, _) in enumerate(largest)}
    return {layer: GREY if group is None else turn[group] for layer, group in owners.items()}


def forward(layers: nx.DiGraph) -> nx.DiGraph:
    """Return the layers with the edges that go on, without those back to layers that are called again."""
    order = {name: i for i, name in enumerate(layers)}
    onward = nx.DiGraph()
    onward.add_nodes_from(layers)
    onward.add_edges_from((a, b) for a, b in layers.edges if order[a] < order[b])
    return onward


def placed(layers: nx.DiGraph, rows: int = ROWS) -> dict[str, tuple[float, float]]:
    """Return where each layer stands, in boxes: below all that it takes from, in columns from left to right.

    Layers that stand beside each other are in the order of what is above them.
    """
    onward = forward(layers)
    rank: dict[str, int] = {}
    for name in onward:
        rank[name] = max((rank[above] + 1 for above in onward.predecessors(name)), default=0)
    lines: list[list[str]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for name, at in rank.items():
        lines[at].append(name)
    places: dict[str, tuple[float, float]] = {}
    left = 0.0
    rows = ceil(len(lines) / ceil(len(lines) / rows)) if lines else rows  # columns of equal height
    for start in range(0, len(lines), rows):
        block = lines[start : start + rows]
        wide = max(map(len, block))
        for row, line in enumerate(block):
            beside = sorted(line, key=lambda name: _middle(places, onward.predecessors(name)))
            for i, name in enumerate(beside):
                places[name] = (left + (wide - len(line)) / 2 + i, -float(row))
        left += wide + 0.35
    return places


def _middle(places: Mapping[str, tuple[float, float]], names: Iterator[str]) -> float:
    """Return where things are from left to right, on average."""
    at = [places[name][0] for name in names if name in places]
    return sum(at) / len(at) if at else 0.0


def draw(layers: nx.DiGraph, owners: Mapping[str, str | None], path: str | os.PathLike[str] | None, axes: Any) -> Any:
    """Draw layers as boxes, coloured by the group of their outputs, and return the axes.

    Lines join layers to those right behind them; what a layer also takes from further above, as through a shortcut, is
    a faint arc.
    """
    places = placed(layers)
    across = max((x for x, _ in places.values()), default=0) + 1
    down = max((-y for _, y in places.values()), default=0) + 1
    if axes is None:
        figure = plottable()(figsize=(WIDE * across + 0.4, HIGH * 1.45 * down + 1.0), layout="constrained")
        axes = figure.add_subplot()
    shade = colours(owners)
    direct = set(nx.transitive_reduction(forward(layers)).edges)
    for edge in layers.edges:
        _line(axes, places, edge, edge in direct)
    for name, (x, y) in places.items():
        text = _label(layers, name)
        box = {"boxstyle": "round,pad=0.25", "facecolor": shade.get(name, GREY), "edgecolor": "#555555", "lw": 0.6}
        axes.text(x, y, text, ha="center", va="center", fontsize=7.5, bbox=box, parse_math=False, zorder=3)
    _legend(axes, owners, shade)
    axes.set_xlim(-0.7, across - 0.3)
    axes.set_ylim(-down + 0.3, 0.7)
    axes.set_axis_off()
    if path is not None:
        axes.figure.savefig(path, dpi=150)
    return axes


def _label(layers: nx.DiGraph, name: str) -> str:
    op = str(layers.nodes[name].get("op", ""))
    return f"{fitted(name or '(the model itself)', LETTERS)}\n{op}" if op else fitted(name, LETTERS)


def _line(axes: Any, places: Mapping[str, tuple[float, float]], edge: tuple[str, str], direct: bool) -> None:
    (x0, y0), (x1, y1) = (places[end] for end in edge)
    # Straight to the next row, and to the top of the next column; an arc around what stands between.
    away = y1 >= y0
    bend = 0.0 if away or (direct and y0 - y1 <= 1) else min(0.35, 0.08 + 0.02 * (y0 - y1))
    strong = direct and not away
    axes.annotate(
        "",
        (x1, y1 + 0.3),
        (x0, y0 - 0.3),
        zorder=2 if strong else 1,
        arrowprops={
            "arrowstyle": "-|>,head_length=0.25,head_width=0.12",
            "color": "#333333" if strong else "#999999",
            "lw": 0.9 if strong else 0.5,
            "alpha": 1.0 if strong else 0.5,
            "linestyle": "--" if away else "-",
            "connectionstyle": f"arc3,rad={bend}",
            "shrinkA": 0,
            "shrinkB": 0,
        },
    )


def _legend(axes: Any, owners: Mapping[str, str | None], shade: Mapping[str, str], most: int = 8) -> None:
    """Say what the colours of the largest groups mean."""
    from matplotlib.patches import Patch

    largest = [group for group, _ in Counter(filter(None, owners.values())).most_common(most)]
    first = {group: next(layer for layer, own in owners.items() if own == group) for group in largest}
    patches = [
        Patch(facecolor=shade[first[g]], edgecolor="#555555", label=fitted(g.replace("$", r"\$"), 36)) for g in largest
    ]
    if None in owners.values():
        patches.append(Patch(facecolor=GREY, edgecolor="#555555", label="stays"))
    if patches:
        axes.legend(handles=patches, title="group of the outputs", loc="upper center", bbox_to_anchor=(0.5, 0),
                    ncols=4, fontsize=7, title_fontsize=7, frameon=False)  # fmt: skip


def to_dot(layers: nx.DiGraph, owners: Mapping[str, str | None]) -> str:
    """Return the graph in Graphviz's language: layers with their operation and colour, edges with what they share."""
    shade = colours(owners)
    lines = [
        "digraph layers {",
        '  node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=10];',
        '  edge [color="#555555", fontname="Helvetica", fontsize=8];',
    ]
    for name, data in layers.nodes(data=True):
        attributes = {
            "label": f"{name or '(the model itself)'}\n{data.get('op', '')}".rstrip(),
            "fillcolor": shade.get(name, GREY),
            "tooltip": data.get("source", ""),
            "group": owners.get(name) or "",
        }
        lines.append(f"  {_quoted(name)} [{_attributes(attributes)}];")
    for a, b, data in layers.edges(data=True):
        shared = ", ".join(data.get("groups", ()))
        tooltip = f" [{_attributes({'tooltip': shared})}]" if shared else ""
        lines.append(f"  {_quoted(a)} -> {_quoted(b)}{tooltip};")
    return "\n".join([*lines, "}"]) + "\n"


def _attributes(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={_quoted(value)}" for name, value in values.items() if value)


def _quoted(text: str) -> str:
    """Return a quoted name: any character may be in it, and none has a meaning but the end of a line."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "").replace("\n", "\\n")
    return f'"{escaped}"'
