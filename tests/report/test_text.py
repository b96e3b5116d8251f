"""The report on a terminal: fits, degrades, and says what it leaves out."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from torch import nn

import surgeon
from surgeon.marks import bar, fitted, milliseconds, share, short, sizes
from surgeon.report import GroupRow, Latency, LayerRow, Report, Totals, Whole
from tests.nets import Residual, image

LONG = "model.text_encoder_with_a_long_name.transformer_blocks.{}.attention_probabilities.self.query_projection"


def large(layers: int, name: str = LONG) -> Report:
    """Return a report of many layers with long names."""
    rows = [
        LayerRow(
            name.format(i), ((1024 + i, 4096, 3, 3), (1000 + i, 2048, 3, 3)), (1e9 + i, 5e8), (10**7 + i, 10**6), "C"
        )
        for i in range(layers)
    ]
    totals = [Totals(sum(r.flops[k] for r in rows), sum(r.params[k] for r in rows), 1, 1.0, 1, 5e6) for k in (0, 1)]
    groups = tuple(GroupRow(row.name, (4096, 2000 + i), (row.name,) * 9) for i, row in enumerate(rows))
    pins = {row.name: f"a reason, at view in {row.name}" for row in rows[:9]}
    return Report(*totals, tuple(rows), groups=groups, pins=pins, out_of_reach={pins[n]: 0.01 for n in pins}, model="M")


def drawn(report: Report, **options: Any) -> str:
    """Return what a console writes to its file."""
    file = io.StringIO()
    Console(file=file, **options).print(report)
    return file.getvalue()


@pytest.fixture(scope="module")
def result() -> surgeon.Result:
    return surgeon.prune(Residual(), image(), ratio=0.5, scope="local")


def test_says_what_became_of_the_model(result: surgeon.Result) -> None:
    text = str(result.report)
    conv1 = next(line for line in text.splitlines() if line.startswith("conv1"))
    assert re.match(r"conv1 +12→6 8→4 3x3 +62\.2k→15\.6k +864→216 +██ +25%$", conv1)
    assert re.search(r"^Layers of Residual ─+$", text, re.M)
    assert re.search(r"^stem +8→4 +████ +50% conv1, conv2, head$", text, re.M)  # the group of the stream
    assert re.search(r"^FLOPs, multiply-adds +86\.5k +\S+ +█+\S? +\S+% \S+x theoretical speed-up$", text, re.M)
    assert "the model's output: head" in text and "Asked for: ratio=0.5, by l1." in text
    assert re.search(r"Proved: masked original = small model to \S+ of the\s+output in float64", text)
    assert "FLOPs as planned" in " ".join(text.split())


@pytest.mark.parametrize("width", [30, 50, 80, 100, 140])
@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("rows", [1, 20, None])
def test_fits(width: int, ascii_only: bool, rows: int | None) -> None:
    text = large(200).text(width=width, ascii_only=ascii_only, layers=rows)
    assert max(map(cell_len, text.splitlines())) <= width
    assert text.isascii() == ascii_only


def test_nothing_is_left_out_of_numbers_at_80_cells() -> None:
    for ascii_only in (False, True):
        lines = large(30).text(ascii_only=ascii_only).splitlines()
        assert not any("…" in line for line in lines)
        arrow = "->" if ascii_only else "→"
        row = next(line for line in lines if line.rstrip().endswith("10%"))
        assert f"{arrow}1.00M" in row and f"4096{arrow}2048 3x3" in row


@pytest.mark.slow
def test_densenet_201_fits_80_cells() -> None:
    model, x = torchvision.models.densenet201(weights=None), torch.randn(1, 3, 32, 32)
    report = surgeon.prune(model, x, flops=0.5, check=False).report
    for text in (str(report), report.text(layers=None)):
        assert max(map(cell_len, text.splitlines())) <= 80
    assert len(str(report).splitlines()) < 60 and "382 smaller" in str(report)
    every = report.text(layers=None).split("\n\n")[0]
    assert len(every.splitlines()) == 2 + len(report.layers) == 2 + 402


def test_the_largest_layers_are_shown_and_the_others_summed_up() -> None:
    report = large(50, "l{}")
    small = LayerRow("small", ((1,), (1,)), (10.0, 10.0), (1, 1))
    report = replace(report, layers=(small, *report.layers))
    lines = report.text(layers=10).splitlines()
    assert [line.split()[0] for line in lines[2:12]] == [f"l{i}" for i in range(40, 50)]
    assert re.match(r"41 smaller +40\.0G→20\.0G +400M→40\.0M", lines[12])
    assert "small " in report.text(layers=None) and "smaller" not in report.text(layers=None)
    assert "more are cut" in report.text(layers=10) and "more are cut" not in report.text(layers=None)
    console = io.StringIO()
    Console(file=console, width=80).print(Whole(report))
    lines = [line.rstrip() for line in console.getvalue().rstrip().splitlines()]
    assert lines == report.text(layers=None).splitlines()
    assert "3 more reasons" in report.text() and "more reasons" not in report.text(layers=None)


def test_no_colour_and_no_escapes_when_piped(result: surgeon.Result, capsys: pytest.CaptureFixture[str]) -> None:
    print(result.report)
    Console().print(result.report)
    assert "\x1b" not in capsys.readouterr().out
    coloured = drawn(result.report, force_terminal=True, color_system="standard", width=80)
    assert "\x1b[" in coloured and re.sub(r"\x1b\[[\d;]*m", "", coloured).startswith("Layers of Residual ──")


class Limited(io.StringIO):
    encoding = "latin-1"  # type: ignore[assignment]


def test_ascii_where_the_encoding_has_no_boxes(result: surgeon.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Limited()
    Console(file=file, width=80).print(result.report)
    assert "12->6" in file.getvalue() and file.getvalue().isascii()
    monkeypatch.setattr("sys.stdout", Limited())
    assert str(result.report).isascii()
    monkeypatch.setattr("sys.stdout", None)  # as in programs without a console
    assert "12→6" in str(result.report)


def test_names_are_texts_and_no_markup() -> None:
    row = LayerRow("[red]a[/]:smile:.b[0]", ((4, 4), (2, 4)), (1.0, 1.0), (16, 8))
    report = replace(large(1), layers=(row,), pins={"[/]": "no [bold] reason"}, note="[/x]", uncounted=("[a]",))
    for text in (str(report), drawn(report, width=80)):
        assert "[red]a[/]:smile:.b[0]" in text and "no [bold] reason: [/]" in text and "[/x]" in text and "[a]" in text


def test_what_is_not_known_is_not_shown(result: surgeon.Result) -> None:
    model, small = Residual(), result.model
    text = str(surgeon.compare(model, small, image()))
    for part in ("Groups", "What stays", "activations' peak", "latency", "Proved", "Not verified", "Asked for"):
        assert part not in text
    text = str(surgeon.compare(model, small, image(), plan=result.plan))
    assert "activations' peak" in text and "Not verified." in text


def test_zero_weights_are_told() -> None:
    model = Residual()
    assert "non-zero" not in str(surgeon.compare(model, model, image()))
    with torch.no_grad():
        model.conv1.weight[:6] = 0
    text = str(surgeon.compare(model, model, image()))
    assert re.search(r"non-zero weights +55\.4k +55\.4k +█+ +100\.0% 1\.00x", text)
    assert "that are not zero" in text


def test_a_model_that_nothing_counts_has_a_report() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.jit.is_tracing():
                raise RuntimeError("not traced")
            return self.first(x)

    report = surgeon.compare(Odd(), Odd(), torch.randn(1, 4))
    assert re.search(r"FLOPs, multiply-adds +- +- +- +-", str(report)) and "not traced" in str(report)
    assert surgeon.Report.from_json(report.to_json()).to_json() == report.to_json()


def test_latency_is_told_with_how_it_was_measured(result: surgeon.Result) -> None:
    timed = replace(result.report, latency=Latency((0.04, 0.025), 0.625, "eager", 0.01, 15, "cpu", 1))
    text = str(timed)
    assert re.search(r"latency, measured +40 ms +25 ms +█+ +62\.5% 1\.60x", text)
    assert "Latency: p50 of 15 runs, eager, cpu, 1 thread." in text


# -- marks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1.00k"),
        (1000, "1.00k"),
        (999_700, "1.00M"),
        (2_043_000, "2.04M"),
        (115.6e6, "116M"),
        (4.1e9, "4.10G"),
        (12.5, "12.5"),
        (0.25, "0.250"),
        (3e15, "3.00P"),
        (float("nan"), "-"),
        (None, "-"),
    ],
)
def test_short_numbers(value: float | None, text: str) -> None:
    assert short(value) == text


@given(st.floats(1, 9e17))
def test_short_numbers_are_close_and_short(value: float) -> None:
    text = short(value)
    unit = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}.get(text[-1], 1)
    assert len(text) <= 5 and float(text.rstrip("kMGTP")) * unit == pytest.approx(value, rel=0.0051)


def test_shares_are_never_all_or_nothing_by_rounding() -> None:
    assert [share(a, 1000) for a in (0, 1, 6, 500, 995, 999.9, 1000)] == "0% <1% 1% 50% >99% >99% 100%".split()
    assert share(1, 0) == share(float("nan"), 1) == "-"


@given(st.floats(0, 1), st.integers(1, 20), st.booleans())
def test_bars_fill_their_width(part: float, width: int, ascii_only: bool) -> None:
    full, empty = bar(part, width, ascii_only)
    assert cell_len(full + empty) == width
    assert len(full) <= part * width + 1 and len(full) >= part * width - 0.5  # rounded, or up to the next eighth


NAME = st.lists(st.from_regex(r"[a-z_]{1,20}[0-9]{0,3}", fullmatch=True) | st.text(max_size=8), max_size=8).map(
    ".".join
)


@given(NAME, st.integers(1, 60))
def test_names_fit(name: str, width: int) -> None:
    assert cell_len(fitted(name, width)) <= width


@pytest.mark.parametrize(
    "width, text",
    [
        (60, "features.denseblock3.denselayer36.conv2"),
        (38, "f.denseblock3.denselayer36.conv2"),
        (24, "f.d3.denselayer36.conv2"),
        (22, "f.d3.d36.conv2"),
        (10, "..36.conv2"),
    ],
)
def test_names_keep_their_numbers(width: int, text: str) -> None:
    assert fitted("features.denseblock3.denselayer36.conv2", width) == text


def test_long_last_names_are_cut_at_their_end() -> None:
    assert fitted(LONG.format(7), 20) == "m.t.t.7.a.s.query_.."
    assert fitted(LONG.format(7) + "12", 20) == "m.t.t.7.a.s.quer..12"


def test_sizes_and_times() -> None:
    assert sizes((64, 32, 3, 3), (31, 32, 3, 3)) == "64→31 32 3x3"
    assert sizes((10,), (10,)) == "10" and sizes((), ()) == ""
    assert sizes((8, 4, 3), (4, 4), "->") == "8x4x3->4x4"
    assert milliseconds(0.0412) == "41.2 ms" and milliseconds(1.25) == "1.25 s"
