"""The page holds the report's numbers, and text that cannot do harm."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import networkx as nx
import pytest
import torch
from hypothesis import given
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

import surgeon
from surgeon.report import compare
from surgeon.report.html import inert, page, payload, unimplied
from surgeon.verify import count_flops
from tests.nets import Residual, image

HOSTILE = "</script><script>window.pwned = 1</script><!--"


@pytest.fixture(scope="module")
def report() -> surgeon.Report:
    return surgeon.prune(Residual(), image(), ratio=0.5, scope="local").report


def embedded(text: str, name: str = "payload") -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])


class Elements(HTMLParser):
    """The elements of a page as a browser sees them, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_payload_is_the_report(report: surgeon.Report) -> None:
    data = embedded(page(report))
    assert data == json.loads(json.dumps(payload(report)))
    assert data["report"] == json.loads(json.dumps(report.document(plan=False)))
    assert data["plan"] == report.plan.to_json()
    assert data["chosen"]["units"] == sum(g.size for g in report.plan.groups)
    assert data["settings"]["ratio"] == 0.5


def test_the_graph_of_the_payload_is_the_anatomy(report: surgeon.Report) -> None:
    found, anatomy = payload(report)["graph"], report.anatomy
    assert [layer["name"] for layer in found["layers"]] == [layer.name for layer in anatomy.layers]
    for layer, part in zip(found["layers"], anatomy.layers):
        assert tuple(found["groups"][n]["name"] for n in layer["groups"]) == part.groups
        assert tuple(found["parameters"][n] for n in layer["parameters"]) == part.parameters
    for group, coupling in zip(found["groups"], anatomy.groups):
        members = [(found["parameters"][n], tuple(dims), side) for n, dims, side in group["members"]]
        assert members == [(m.parameter, m.dims, m.side) for m in coupling.members]
        assert group["units"] == [coupling.units, coupling.units - coupling.gone]
    assert {(a, b) for a, b, _ in found["edges"]} == set(anatomy.edges)
    # The head reads the sum of the stem and of the block behind it.
    names = [layer.name for layer in anatomy.layers]
    implied = {(names[a], names[b]) for a, b, direct in found["edges"] if not direct}
    assert implied == {("stem", "head")}


@given(st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda e: e[0] < e[1])))
def test_implied_edges_are_those_of_a_transitive_reduction(edges: set[tuple[int, int]]) -> None:
    graph = nx.DiGraph(edges)
    assert unimplied(12, sorted(edges)) == set(nx.transitive_reduction(graph).edges)


def test_edges_against_the_order_stay() -> None:
    assert unimplied(3, [(0, 1), (1, 2), (0, 2), (2, 0), (1, 1)]) == {(0, 1), (1, 2), (2, 0), (1, 1)}


def test_only_the_page_s_own_script_may_run(report: surgeon.Report) -> None:
    text = page(report)
    elements = Elements(text).found
    (policy,) = [a["content"] for tag, a in elements if a.get("http-equiv") == "Content-Security-Policy"]
    script = text.rpartition("<script>")[2].rpartition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None and "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert [a.get("type") for tag, a in elements if tag == "script"] == ["application/json", "application/json", None]
    links = [value for _, a in elements for name, value in a.items() if name in ("src", "href")]
    assert links == ["data:,"]


def test_names_are_text_and_nothing_else(report: surgeon.Report) -> None:
    layers = tuple(replace(row, name=f"{row.name}{HOSTILE}") for row in report.layers)
    anatomy = replace(
        report.anatomy, layers=tuple(replace(part, name=f"{part.name}{HOSTILE}") for part in report.anatomy.layers)
    )
    bad = replace(report, model=HOSTILE, layers=layers, anatomy=anatomy, note=HOSTILE, pins={HOSTILE: HOSTILE})
    text = page(bad)
    tags = [tag for tag, _ in Elements(text).found]
    assert tags == [tag for tag, _ in Elements(page(report)).found]
    assert embedded(text)["report"]["model"] == HOSTILE
    assert embedded(text)["report"]["layers"][0]["name"] == f"stem{HOSTILE}"
    cell = Elements(bad._repr_html_()).found
    assert {tag for tag, _ in cell} <= {"div", "p", "b", "table", "tr", "th", "td"}


@given(st.text())
def test_inert_text_reads_back(text: str) -> None:
    written = inert({text: [text]})
    assert json.loads(written) == {text: [text]}
    assert not set(written) & set("<>&\u2028\u2029")


def test_what_was_not_counted_is_null_and_not_a_wrong_number(report: surgeon.Report) -> None:
    nothing = replace(report, before=replace(report.before, flops=float("nan")), plan=None, proof=None, anatomy=None)
    data = embedded(page(nothing))
    assert data["report"]["before"]["flops"] is None
    assert data["plan"] is data["graph"] is data["chosen"] is None


def test_comparing_without_a_graph_makes_a_page_too() -> None:
    report = surgeon.compare(Residual(), Residual(inner=6), image())
    assert embedded(page(report))["graph"] is None and "Residual" in report._repr_html_()


def test_files_appear_whole_or_not_at_all(report: surgeon.Report, tmp_path: Path) -> None:
    report.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page(report)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(surgeon.SurgeonError, match="nowhere"):
        report.to_html(tmp_path / "nowhere" / "report.html")


def _weight(model: nn.Module) -> float:
    return sum(float(p.detach().abs().sum()) for p in model.parameters())


def test_curves_are_those_that_were_computed(report: surgeon.Report) -> None:
    model = Residual()
    graph = surgeon.trace(model, image())
    curve = surgeon.pareto(graph, surgeon.score(graph, "l1"), flops=(0.4, 0.9), points=4)
    found = surgeon.sensitivity(model, image(), evaluate=_weight, ratios=(0.25, 0.5))
    data = payload(report, curve, found)
    assert data["pareto"] == {"resource": "flops", "left": list(curve.left), "losses": list(curve.losses)}
    assert data["sensitivity"]["base"] == found.base
    assert [c["value"] for c in data["sensitivity"]["curves"]] == [list(c.value) for c in found.curves]


def test_notebooks_show_totals_and_the_largest_cuts(report: surgeon.Report) -> None:
    text = report._repr_html_()
    assert f"{report.before.params:,}" in text and f"{report.after.params:,}" in text
    assert f"{report.after.flops:,.0f}" in text and "Proved: masked original" in text
    largest = max(report.layers, key=lambda row: row.params[0] - row.params[1])
    assert text.index(largest.name) < min(text.index(f">{row.name}<") for row in report.layers if row != largest)
    # Nothing that would reach the notebook around it.
    assert not re.search(r"<style|<script|<link|class=|id=", text)


def test_the_vgg_picture() -> None:
    """At 224x224, the last three convolutions hold about 48% of the convolutional parameters, and 9% of the FLOPs."""
    model = make_layers(cfgs["D"])  # VGG-16 without its head, which is most of its weights
    x = torch.randn(1, 3, 224, 224)
    count = count_flops(model, x)
    rows = payload(compare(model, model, x, counts=(count, count)))["report"]["layers"]
    widths = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    sides = (224, 224, 112, 112, 56, 56, 56, 28, 28, 28, 14, 14, 14)
    by_hand = [(9 * i * o * side**2, 9 * i * o + o) for i, o, side in zip((3, *widths), widths, sides)]
    assert [(row["flops"][0], row["params"][0]) for row in rows] == by_hand
    shares = [sum(column[-3:]) / sum(column) for column in zip(*by_hand)]
    assert shares == [pytest.approx(0.09, abs=0.005), pytest.approx(0.48, abs=0.005)]
