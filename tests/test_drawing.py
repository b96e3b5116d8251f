"""The picture of the graph, and its text for Graphviz."""

from __future__ import annotations

import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

import surgeon
from surgeon.drawing import COLOURS, GREY, colours, owners, placed, to_dot
from tests.nets import Residual, image

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydot calls pyparsing by names that are deprecated
    import pydot.dot_parser


@pytest.fixture(scope="module")
def graph() -> surgeon.graph.DependencyGraph:
    return surgeon.trace(Residual(), image())


def boxes(axes: Any) -> dict[str, Any]:
    """Return the boxes of layers by what they say first."""
    return {text.get_text().split("\n")[0]: text for text in axes.texts if text.get_text()}


def test_every_layer_is_drawn_in_the_colour_of_its_group(graph: Any) -> None:
    drawn = boxes(graph.draw())
    assert drawn.keys() == set(graph.layers)
    colour = {name: box.get_bbox_patch().get_facecolor() for name, box in drawn.items()}
    assert colour["stem"] == colour["conv2"] != colour["conv1"] == colour["bn1"]  # the stream, and what is inside
    assert drawn["head"].get_text() == "head\nlinear"


def test_what_stays_is_grey(graph: Any) -> None:
    found = owners(graph.layers, graph.free)
    assert found == {"stem": "stem", "conv1": "conv1", "bn1": "conv1", "conv2": "stem", "head": None}
    assert colours(found)["head"] == GREY and colours(found)["stem"] == COLOURS[0]


class Deep(nn.Module):
    """Fifty layers with shortcuts, and two branches in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(48))
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            x = x + torch.relu(layer(x))
            if i == 24:
                x = self.left(x) + self.right(x)
        return x


def test_fifty_layers_are_legible() -> None:
    axes = surgeon.trace(Deep(), torch.randn(2, 8)).draw()
    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    patches = [box.get_bbox_patch().get_window_extent() for box in boxes(axes).values()]
    assert len(patches) == 50
    overlaps = [(a, b) for i, a in enumerate(patches) for b in patches[:i] if a.overlaps(b)]
    assert not overlaps
    inside = axes.figure.bbox
    assert all(inside.x0 <= p.x0 and p.x1 <= inside.x1 and inside.y0 <= p.y0 and p.y1 <= inside.y1 for p in patches)
    # Letters of at least seven points, on paper of at most A2.
    assert min(box.get_fontsize() for box in boxes(axes).values()) >= 7
    assert max(axes.figure.get_size_inches()) < 23.4


def test_draws_on_given_axes_and_to_a_file(graph: Any, tmp_path: Path) -> None:
    axes = Figure().add_subplot()
    assert graph.draw(tmp_path / "layers.png", axes=axes) is axes
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib(graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(surgeon.SurgeonError, match=r"channel-surgeon\[plot\]"):
        graph.draw()


@given(st.integers(1, 40).flatmap(lambda n: st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))))
def test_no_two_layers_in_one_place(edges: list[tuple[int, int]]) -> None:
    layers = nx.DiGraph([(str(a), str(b)) for a, b in edges])
    places = placed(layers, rows=5)
    spots = sorted(places.values())
    assert len(places) == len(layers)
    assert all(a[0] + 1 <= b[0] or a[1] != b[1] for a, b in pairwise(spots))
    order = {name: i for i, name in enumerate(layers)}
    for a, b in layers.edges:
        if order[a] < order[b]:  # on: below, or in a later column
            assert places[a][1] > places[b][1] or places[a][0] < places[b][0]


def test_an_empty_graph() -> None:
    assert placed(nx.DiGraph()) == {}
    assert pydot.graph_from_dot_data(to_dot(nx.DiGraph(), {}))[0].get_edges() == []


def test_a_layer_that_is_called_twice_has_one_box() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.shared(torch.relu(self.first(torch.relu(self.shared(self.first(x))))))

    assert boxes(surgeon.trace(Twice(), torch.randn(1, 4)).draw()).keys() == {"first", "shared"}


# -- Graphviz ----------------------------------------------------------------------------------------


def read(text: str) -> tuple[dict[str, dict[str, str]], set[tuple[str, str]]]:
    """Return nodes with their attributes, and edges, as pydot reads them."""
    (dot,) = pydot.graph_from_dot_data(text)
    plain = {n.get_name(): n.get_attributes() for n in dot.get_nodes() if n.get_name() not in ("node", "edge")}
    nodes = {_bare(name): {k: _bare(v) for k, v in a.items()} for name, a in plain.items()}
    return nodes, {(_bare(e.get_source()), _bare(e.get_destination())) for e in dot.get_edges()}


def _bare(text: str) -> str:
    """Undo the quotes of Graphviz's language."""
    assert text[0] == text[-1] == '"'
    return text[1:-1].replace('\\"', '"').replace("\\\\", "\\")


def test_dot_holds_the_graph(graph: Any) -> None:
    nodes, edges = read(graph.to_dot())
    assert nodes.keys() == set(graph.layers) and edges == set(graph.layers.edges)
    assert nodes["stem"]["fillcolor"] == nodes["conv2"]["fillcolor"] != nodes["conv1"]["fillcolor"]
    assert nodes["head"]["fillcolor"] == GREY and nodes["conv1"]["label"] == "conv1\\nconv2d"
    assert "nets.py" in nodes["stem"]["tooltip"] and nodes["stem"]["group"] == "stem"


ODD = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), min_size=1, max_size=8)


@settings(max_examples=20)
@given(st.lists(ODD, min_size=2, max_size=5, unique=True))
def test_odd_names_are_quoted(names: list[str]) -> None:
    layers = nx.DiGraph()
    nx.add_path(layers, names, groups=names)
    nodes, edges = read(to_dot(layers, dict.fromkeys(names, names[0])))
    assert nodes.keys() == set(names) and edges == set(pairwise(names))


@pytest.mark.parametrize("name", ['a"b', "a\\", "a\\nb", "a->b", "a;}", "a:b", "[x]", "<b>", "node", "%view_2[3]", "ü"])
def test_names_that_mean_something_to_graphviz(name: str) -> None:
    layers = nx.DiGraph([(name, "last")])
    nodes, edges = read(to_dot(layers, {name: None, "last": None}))
    assert nodes.keys() >= {"last"} and edges == {(name, "last")}
