"""The page in a browser: it renders, answers to mouse and keyboard, is accessible, and asks for nothing.

Screenshots are left in ``build/screenshots`` to be looked at.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

import surgeon
from surgeon.report import compare
from surgeon.verify import count_flops
from tests.nets import Residual, image

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots"
AXE = Path(__file__).with_name("axe.min.js")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOSTILE = "</script><img src=x onerror=\"window['pwned']=1\">&<b>"

TIMES, DASH = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"

Open = Callable[..., Any]


class Tower(nn.Module):
    """Twelve residual blocks of four layers, with a stem and a head: fifty layers."""

    def __init__(self, width: int = 8, blocks: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.stages = nn.ModuleList(self.block(width) for _ in range(blocks))
        self.head = nn.Linear(width, 5)

    @staticmethod
    def block(width: int) -> nn.Sequential:
        inner = [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)]
        return nn.Sequential(*inner, nn.ReLU(), nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.stages:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class Branches(nn.Module):
    """Three modules of three branches each, whose results are concatenated."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3 * width, 1)
        self.inception = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Conv2d(3 * width, width, 1), *self.more(width, n)) for n in range(3))
            for _ in range(3)
        )
        self.head = nn.Linear(3 * width, 5)

    @staticmethod
    def more(width: int, layers: int) -> list[nn.Module]:
        return [nn.Conv2d(width, width, 3, padding=1) for _ in range(layers)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for module in self.inception:
            x = torch.cat([branch(x) for branch in module], 1)
        return self.head(x.mean((2, 3)))


class Hostile(nn.Module):
    """Layers whose names are markup."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(HOSTILE, nn.Linear(4, 8))
        self.add_module("__proto__", nn.Linear(8, 8))
        self.add_module("constructor", nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = torch.relu(layer(x))
        return x


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if program is None or sync_playwright is None:
        missing = "no chromium" if program is None else "no playwright"
        if os.environ.get("SURGEON_BROWSER"):
            pytest.fail(f"{missing}, and SURGEON_BROWSER asks for these tests")
        pytest.skip(missing)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Give a function that opens a report; in the end there were no errors and no requests."""
    contexts, errors = [], []

    def open(report: surgeon.Report, width: int = 1440, height: int = 900, theme: str = "light", **curves: Any) -> Any:
        path = tmp_path / "report.html"
        report.to_html(path, **curves)
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: errors.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        if report.anatomy is not None:
            page.wait_for_selector("#graph-canvas[data-ready]")
        return page

    yield open
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture(scope="module")
def made() -> SimpleNamespace:
    """A small model with its curves, and one of fifty layers."""
    torch.manual_seed(0)
    model = Residual()
    graph = surgeon.trace(model, image())
    scores = surgeon.score(graph, "l1")
    curves = {
        "pareto": surgeon.pareto(graph, scores, flops=(0.4, 0.9), points=5),
        "sensitivity": surgeon.sensitivity(model, image(), evaluate=_weight, ratios=(0.25, 0.5, 0.75)),
    }
    small = surgeon.prune(model, image(), ratio=0.5, scope="local").report
    tower = surgeon.prune(Tower(), image(8), flops=0.5).report
    return SimpleNamespace(graph=graph, curves=curves, small=small, tower=tower)


def _weight(model: nn.Module) -> float:
    return sum(float(p.detach().abs().sum()) for p in model.parameters())


def details(page: Any) -> str:
    text: str = page.inner_text("#details")
    return text


# -- what is shown -----------------------------------------------------------------------------------


def test_cards_show_the_totals(made: SimpleNamespace, opened: Open) -> None:
    report = replace(made.small, latency=surgeon.report.Latency((2e-3, 1.5e-3), 0.75, "eager", runs=15, device="cpu"))
    page = opened(report)
    for name in ("flops", "params", "bytes", "memory"):
        card = page.locator(f"#card-{name}")
        shown = [float(card.get_attribute(f"data-{when}")) for when in ("before", "after")]
        assert shown == [getattr(report.before, name), getattr(report.after, name)]
        share = getattr(report.after, name) / getattr(report.before, name)
        assert f"{share:.1%} left" in card.inner_text()
    assert f"{report.theoretical_speedup:.2f}{TIMES} theoretical speed-up" in page.inner_text("#card-flops")
    assert f"{report.compression_ratio:.2f}{TIMES} compression" in page.inner_text("#card-params")
    assert re.search(r"1\.5 ms\s+from 2 ms", page.inner_text("#card-latency"))
    assert "One FLOP is one multiply-add" in page.inner_text("main")


def test_rows_show_the_report_s_numbers(made: SimpleNamespace, opened: Open) -> None:
    report = made.small
    page = opened(report)
    for row in report.layers:
        cells = page.locator(f'#layer-table tr[data-layer="{row.name}"] td')
        titles = [cells.nth(i).get_attribute("title") for i in range(2, 6)]
        assert [float(title.replace(",", "")) for title in titles] == [*row.flops, *row.params]
        before, after = (TIMES.join(map(str, shape)) for shape in row.shape)
        assert cells.nth(1).inner_text() == (f"{before} → {after}" if before != after else before)
        assert cells.nth(6).inner_text() == (f"{row.share_cut:.1%}" if row.share_cut else DASH)


def test_proof_plan_and_environment(made: SimpleNamespace, opened: Open) -> None:
    report = made.small
    page = opened(report)
    proof, plan = page.inner_text("#proof"), page.inner_text("#plan")
    assert f"{report.proof.flops[1]:,.0f}" in proof and f"{report.proof.params[0]:,} predicted" in proof
    removed, units = (sum(getattr(g, name) for g in report.plan.groups) for name in ("removed", "size"))
    assert f"{removed} of {units} units go" in plan and "ratio" in plan
    assert report.environment.torch in page.inner_text("#environment")
    assert "model's output" in page.text_content("#pins")
    with page.expect_download() as download:
        page.click("#download")
    assert Path(download.value.path()).read_text(encoding="utf-8") == report.plan.to_json()
    assert download.value.suggested_filename == "surgeon-plan.json"


def test_curves_where_they_were_computed(made: SimpleNamespace, opened: Open) -> None:
    page = opened(made.small, **made.curves)
    assert "5 nested plans" in page.inner_text("#pareto")
    assert page.locator("#pareto svg circle").count() == 5
    legend = page.locator("#sensitivity .legend li").all_inner_texts()
    assert set(legend) == {curve.group for curve in made.curves["sensitivity"].curves}
    page = opened(made.small)
    assert page.locator("#pareto, #sensitivity").count() == 0


def test_the_vgg_picture(opened: Open) -> None:
    model, x = nn.Sequential(make_layers(cfgs["D"]), nn.Flatten(), nn.Linear(512, 10)), torch.randn(1, 3, 32, 32)
    count = count_flops(model, x)
    page = opened(compare(model, model, x, counts=(count, count)))
    assert page.locator("#graph").count() == 0
    assert page.locator("#shares-kind").count() == 1
    page.select_option("#shares-kind", "Conv2d")
    text = page.inner_text("#shares")
    # At any resolution that five poolings divide: 3 of 27.1 parts of the work, 7.08 of 14.7 million parameters.
    assert "The last 3 layers hold 48.1% of the parameters and 9.0% of the FLOPs" in text
    assert "layer 7 of 13" in text and "layer 10 of 13" in text


# -- the table ---------------------------------------------------------------------------------------


def test_the_table_sorts(made: SimpleNamespace, opened: Open) -> None:
    report = made.tower
    page = opened(report)
    rows = {row.name: row for row in report.layers}

    def order() -> list[str]:
        names: list[str] = page.eval_on_selector_all("#layer-table tbody tr", "rows => rows.map(r => r.dataset.layer)")
        return names

    start = order()
    assert start == [layer.name for layer in report.anatomy.layers]
    for key, value in (
        ("flops", lambda n: rows[n].flops[0]),
        ("flops-after", lambda n: rows[n].flops[1]),
        ("params", lambda n: rows[n].params[0]),
        ("params-after", lambda n: rows[n].params[1]),
        ("cut", lambda n: rows[n].share_cut),
    ):
        head = page.locator(f'#layer-table th[data-key="{key}"]')
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        assert order() == sorted(start, key=lambda n: -value(n))
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        assert order() == sorted(start, key=value)
        assert page.locator("#layer-table th[aria-sort]").count() == 1
    page.click('#layer-table th[data-key="name"] button')
    assert order()[:4] == ["head", "stages.0.0", "stages.0.1", "stages.0.3"]
    assert order().index("stages.2.0") < order().index("stages.10.0")


def test_the_table_filters(made: SimpleNamespace, opened: Open) -> None:
    page = opened(made.tower)
    shown = page.locator("#layer-table tbody tr:not([hidden])")
    page.fill("#layer-filter", "stages.1*.0")
    names = ["stages.1.0", "stages.10.0", "stages.11.0"]
    assert shown.evaluate_all("rows => rows.map(r => r.dataset.layer)") == names
    page.fill("#layer-filter", "STAGES.3")
    assert shown.count() == 4
    page.fill("#layer-filter", "")
    page.check("#layer-changed")
    changed = sum(row.changed for row in made.tower.layers)
    assert shown.count() == changed < len(made.tower.layers)
    assert f"{changed} of 50 layers" in page.inner_text("#layers .controls")


# -- the graph ---------------------------------------------------------------------------------------


def test_the_graph_has_every_layer(made: SimpleNamespace, opened: Open) -> None:
    for report in (made.small, made.tower):
        page = opened(report)
        drawn = page.eval_on_selector_all("#graph-canvas .node", "nodes => nodes.map(n => n.dataset.layer)")
        assert drawn == [layer.name for layer in report.anatomy.layers]
        assert page.locator("#layer-list button").count() == len(drawn)


def test_fifty_layers_are_readable(made: SimpleNamespace, opened: Open) -> None:
    assert len(made.tower.anatomy.layers) == 50
    _check_readable(opened(made.tower), 50)


def test_branches_do_not_overlap(opened: Open) -> None:
    report = surgeon.prune(Branches(), image(), ratio=0.5).report
    page = opened(report)
    _check_readable(page, 20)
    # Two concatenations that three branches read; the last one has one reader, and needs none.
    assert page.locator("#graph-canvas .junction").count() == 2


def test_deep_graphs_are_drawn(made: SimpleNamespace, opened: Open) -> None:
    """Two towers of 800 layers side by side, which no layer joins before the end."""
    part = made.small.anatomy.layers[0]
    names = ["stem", *(f"{side}.{i}" for i in range(800) for side in "ab"), "head"]
    edges = [(0, 1), (0, 2), *((n, n + 2) for n in range(1, 1599)), (1599, 1601), (1600, 1601)]
    layers = tuple(replace(part, name=name) for name in names)
    page = opened(replace(made.small, anatomy=replace(made.small.anatomy, layers=layers, edges=tuple(edges))))
    assert page.locator("#graph-canvas .node").count() == 1602
    boxes = page.eval_on_selector_all("#graph-canvas .node", "nodes => nodes.map(n => n.getAttribute('transform'))")
    assert len(set(boxes)) == 1602


def _check_readable(page: Any, layers: int) -> None:
    """All layers are in view, with their names, in print that can be read, and nothing covers anything."""
    found = page.eval_on_selector_all(
        "#graph-canvas .node",
        """nodes => nodes.map(n => {
            const box = n.querySelector(".box").getBoundingClientRect();
            const texts = [...n.querySelectorAll("text")].map(t => t.getBoundingClientRect());
            return [box, ...texts].map(r => [r.left, r.top, r.right, r.bottom]);
        })""",
    )
    canvas = page.locator("#graph-canvas").bounding_box()
    assert len(found) == layers
    for box, *texts in found:
        assert box[0] >= canvas["x"] and box[2] <= canvas["x"] + canvas["width"]
        assert box[1] >= canvas["y"] and box[3] <= canvas["y"] + canvas["height"]
        for text in texts:
            assert text[2] - text[0] > 0 and text[3] - text[1] > 9  # shown, and large enough to be read
            assert box[0] <= text[0] and text[2] <= box[2] and box[1] - 1 <= text[1] and text[3] <= box[3] + 1
        assert not any(_overlap(a, b) for i, a in enumerate(texts) for b in texts[:i])
    boxes = [node[0] for node in found]
    assert not any(_overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def _overlap(a: list[float], b: list[float]) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > 0.5 and min(a[3], b[3]) - max(a[1], b[1]) > 0.5


def test_a_click_shows_the_group(made: SimpleNamespace, opened: Open) -> None:
    page = opened(made.small)
    page.locator('#graph-canvas .node[data-layer="conv2"]').click()
    groups = page.locator("#details .group")
    assert groups.evaluate_all("found => found.map(g => g.dataset.group)") == ["stem", "conv1"]
    (stem,) = (group for group in made.small.anatomy.groups if group.name == "stem")
    text = groups.first.inner_text()
    assert f"{stem.size} → {stem.size - stem.removed}" in text
    for line in made.graph.explain("conv2").splitlines():
        tied, together = line.partition("tied by ")[2], line.partition("cut together with ")[2]
        assert tied in details(page) and together in details(page)
    assert f"the line is at {stem.scores.cut:.4g}" in text
    assert groups.first.locator("svg text", has_text=re.compile("^cut$")).count() == 1
    assert page.locator('#layer-table tr.selected[data-layer="conv2"]').count() == 1
    page.locator('#graph-canvas .node[data-layer="head"]').click()
    assert "Stays" in details(page) and "the model's output" in details(page)
    page.locator('#details button.link:has-text("stem.weight")').first.click()
    assert page.inner_text("#details h3") == "stem"


def test_the_keyboard_reaches_every_layer(made: SimpleNamespace, opened: Open) -> None:
    page = opened(made.tower)
    page.focus("#graph-search")
    page.keyboard.type("stages.7")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.layer") == "stages.7.1"
    page.keyboard.press("Enter")
    assert page.inner_text("#details h3") == "stages.7.1"
    assert page.locator("#graph-canvas .node.selected").get_attribute("data-layer") == "stages.7.1"
    assert page.locator('#layer-list [aria-current="true"]').count() == 1
    page.keyboard.press("End")
    page.keyboard.press("Space")
    assert page.inner_text("#details h3") == "stages.7.4"
    # One stop in the order of tabs, however many layers there are.
    assert page.locator('#layer-list button[tabindex="0"]').count() == 1


def test_the_graph_moves_and_zooms(made: SimpleNamespace, opened: Open) -> None:
    page = opened(made.tower)

    def view() -> tuple[float, float, float]:
        numbers = re.findall(r"-?[\d.]+", page.get_attribute("#graph-canvas svg > g", "transform"))
        x, y, k = map(float, numbers)
        return x, y, k

    page.focus("#graph-canvas")
    x, y, k = view()
    page.keyboard.press("ArrowRight")
    assert view() == pytest.approx((x - 60, y, k))
    page.keyboard.press("+")
    assert view()[2] == pytest.approx(1.3 * k)
    page.keyboard.press("0")
    assert view() == pytest.approx((x, y, k))
    box = _scrolled_to(page, "#graph-canvas")
    page.mouse.move(box["x"] + 6, box["y"] + box["height"] - 6)
    page.mouse.down()
    page.mouse.move(box["x"] + 106, box["y"] + box["height"] - 36)
    page.mouse.up()
    assert view() == pytest.approx((x + 100, y - 30, k))
    page.get_by_role("button", name="Zoom in").click()
    assert view()[2] == pytest.approx(1.3 * k)
    page.get_by_role("button", name="Fit the graph").click()
    box = _scrolled_to(page, "#graph-canvas")
    page.mouse.move(box["x"] + 100, box["y"] + box["height"] - 100)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -200)
    page.wait_for_function("k => document.querySelector('#graph-canvas svg').__zoom.k > k", arg=1.05 * k)
    page.keyboard.up("Control")
    page.wait_for_timeout(100)
    x, y, k = view()
    page.mouse.wheel(0, -200)  # without the key the page scrolls, and the graph stays
    page.wait_for_timeout(100)
    assert view() == (x, y, k)


def _scrolled_to(page: Any, selector: str) -> dict[str, float]:
    """Bring the lower end of an element into view and return where it is then."""
    page.locator(selector).evaluate("element => element.scrollIntoView({block: 'end', behavior: 'instant'})")
    box: dict[str, float] = page.locator(selector).bounding_box()
    return box


# -- harm, access, looks -----------------------------------------------------------------------------


def test_names_that_are_markup_stay_text(opened: Open) -> None:
    report = surgeon.prune(Hostile(), torch.randn(2, 4), ratio=0.5, scope="local").report
    page = opened(replace(report, model=HOSTILE, note=HOSTILE))
    names = [HOSTILE, "__proto__", "constructor"]
    assert page.inner_text("h1") == HOSTILE
    assert page.locator("#layer-table tbody .name").evaluate_all("c => c.map(x => x.firstChild.data)") == names
    for i, name in enumerate(names):
        page.locator("#layer-list button").nth(i).click()
        assert page.inner_text("#details h3") == name
    assert page.locator("img, #details b b, iframe").count() == 0
    assert page.evaluate("window.pwned") is None


def test_no_other_script_runs(made: SimpleNamespace, browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    made.small.to_html(path)
    # As if something had got into the page.
    text = path.read_text(encoding="utf-8").replace("<noscript>", "<script>window.pwned = 1</script><noscript>", 1)
    path.write_text(text, encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.locator("#card-flops").count() == 1 and page.evaluate("window.pwned") is None
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_accessible(made: SimpleNamespace, opened: Open, theme: str, width: int) -> None:
    page = opened(made.tower, width=width, theme=theme, **made.curves)
    page.locator("#layer-list button").nth(2).click()
    page.wait_for_selector("#details figure svg")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    broken = {rule["id"]: [node["target"] for node in rule["nodes"]] for rule in found["violations"]}
    assert broken == {}
    passed = {rule["id"] for rule in found["passes"]}
    assert {"color-contrast", "label", "aria-required-attr", "heading-order"} <= passed


def test_the_theme_switches(made: SimpleNamespace, opened: Open) -> None:
    page = opened(made.small)

    def background() -> str:
        colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour

    light = background()
    page.get_by_role("button", name="Switch to dark").click()
    assert background() != light
    page.get_by_role("button", name="Switch to light").click()
    assert background() == light
    page.emulate_media(color_scheme="dark")
    assert background() == light  # what was chosen stays


def test_narrow_screens_do_not_scroll_sideways(made: SimpleNamespace, opened: Open) -> None:
    for report in (made.small, made.tower):
        page = opened(report, width=390, height=844, **made.curves)
        page.locator("#layer-list button").nth(1).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_paper_is_white_and_shows_the_whole_graph(made: SimpleNamespace, opened: Open) -> None:
    page = opened(made.tower, theme="dark")
    page.get_by_role("button", name="Zoom in").click()
    page.emulate_media(media="print")
    page.wait_for_selector("#graph-canvas svg[viewBox]")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    canvas = page.locator("#graph-canvas").bounding_box()
    for box in page.locator("#graph-canvas .node").all():
        found = box.bounding_box()
        assert found["x"] >= canvas["x"] - 1 and found["x"] + found["width"] <= canvas["x"] + canvas["width"] + 1
    assert page.locator("#theme").is_hidden()
    assert page.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.parametrize("look", ["light", "dark", "narrow", "print"])
def test_screenshots(made: SimpleNamespace, opened: Open, look: str) -> None:
    size = {"narrow": (390, 844), "print": (760, 1075)}.get(look, (1440, 900))
    page = opened(made.tower, *size, "dark" if look == "dark" else "light", **made.curves)
    page.locator("#layer-list button").nth(20).click()
    page.wait_for_selector("#details figure svg")
    if look == "print":
        page.emulate_media(media="print")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{look}.png", full_page=True)
    assert (SCREENSHOTS / f"{look}.png").stat().st_size > 20_000
