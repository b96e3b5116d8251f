"""The documentation is whole: pages are in the navigation, names in the reference, scripts among the examples."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import surgeon
from tests.check_site import complaints

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ENTRY = re.compile(r"^::: (?P<name>\S+)", re.M)


def _pages(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for each in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _pages(each)


def test_every_page_is_in_the_navigation() -> None:
    yaml = pytest.importorskip("yaml")
    nav = list(_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert len(nav) == len(set(nav))
    assert set(nav) == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


def _referenced() -> list[str]:
    pages = sorted((DOCS / "reference").glob("*.md"))
    return [name for path in pages for name in ENTRY.findall(path.read_text(encoding="utf-8"))]


def test_every_public_name_has_one_entry_in_the_reference() -> None:
    found = _referenced()
    assert len(found) == len(set(found))
    assert {f"surgeon.{name}" for name in surgeon.__all__} <= set(found)
    assert {f"surgeon.errors.{name}" for name in surgeon.errors.__all__ if name != "SurgeonError"} <= set(found)


def test_the_list_of_names_is_that_of_the_package() -> None:
    text = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[`(\w+)`\]\[surgeon\.\1\]", text, re.M)) == sorted(surgeon.__all__)


def test_every_example_is_listed() -> None:
    listed = re.findall(r"\]\(\.\./examples/([\w.]+)\)", (DOCS / "examples.md").read_text(encoding="utf-8"))
    there = [path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".ipynb")]
    assert sorted(listed) == sorted(there)


def test_pictures_bring_their_own_background_for_light_and_dark() -> None:
    pictures = list((DOCS / "images").glob("*.svg"))
    assert pictures
    for path in pictures:
        text = path.read_text(encoding="utf-8")
        assert "prefers-color-scheme: dark" in text and 'class="panel"' in text and "<title" in text


# -- measured figures --------------------------------------------------------------------------------


def _rows(page: str, columns: int) -> Iterator[list[str]]:
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == columns:
            yield cells


def test_compile_times_of_the_comparison_are_those_measured() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "compile_time.json").read_text(encoding="utf-8"))
    told = {name: values for name, *values in _rows("comparison.md", 5)}

    def shown(value: float | None) -> str:
        return "" if value is None or math.isnan(value) else f"{value:.3g}"

    for row in results["rows"]:
        wanted = [shown(row[key]) for key in ("surgeon", "torch-pruning", "speed-up")]
        assert told[row["network"]][:3] == wanted, row["network"]


def test_accuracies_of_the_comparison_are_those_measured() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "accuracy.json").read_text(encoding="utf-8"))["rows"]
    names = {
        "torch-pruning L1, global": "torch-pruning L1, global",
        "torch-pruning Taylor, global": "torch-pruning Taylor, global",
        "surgeon, L1": "l1",
        "surgeon, with 512 images without labels": "obs, curves + ridge",
    }
    told = {name: values for name, *values in _rows("comparison.md", 4) if name in names}
    assert told.keys() == names.keys()
    for name, method in names.items():
        (row,) = (r for r in results if (r["network"], r["method"], str(r["budget"])) == ("resnet20", method, "0.5"))
        assert told[name] == [f"{row['not cut'] - row[key]:.1f}" for key in ("one-shot", "norms", "tuned")]


# -- the check of a built site -----------------------------------------------------------------------


def _site(folder: Path, head: str, anchor: str) -> Path:
    (folder / "reference").mkdir()
    (folder / "index.html").write_text(f"<html><head>{head}</head><a href='https://example.org'>elsewhere</a></html>")
    (folder / "reference" / "a.html").write_text(f"<h2 id='{anchor}'>a</h2>")
    return folder


def test_a_site_that_is_whole(tmp_path: Path) -> None:
    site = _site(tmp_path, "<script src='own.js'></script>", "surgeon.a")
    assert list(complaints(site, ["surgeon.a"])) == []


@pytest.mark.parametrize(
    "head",
    ["<script src='https://unpkg.com/x'></script>", "<link rel='stylesheet' href='//fonts.example/x.css'>"],
)
def test_a_site_that_loads_from_elsewhere(tmp_path: Path, head: str) -> None:
    (found,) = complaints(_site(tmp_path, head, "surgeon.a"), ["surgeon.a"])
    assert found.startswith("index.html loads ")


def test_styles_that_load_from_elsewhere_and_missing_names(tmp_path: Path) -> None:
    site = _site(tmp_path, "", "surgeon.a")
    (site / "own.css").write_text("body { background: url(https://example.org/x.png) }")
    assert list(complaints(site, ["surgeon.a", "surgeon.b"])) == [
        "own.css loads from elsewhere",
        "surgeon.b is not in the reference",
    ]
