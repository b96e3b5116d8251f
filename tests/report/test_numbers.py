"""The report's numbers are fvcore's, the plan's, and those that one works out by hand."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import surgeon
from surgeon import comparison
from surgeon.latency import Measurement
from surgeon.plan import cost
from surgeon.report import Share, compare
from surgeon.verify import count_flops
from tests.nets import Perceptron, Residual, image


def fvcore(model: nn.Module, x: torch.Tensor) -> tuple[float, dict[str, int]]:
    """Return multiply-adds by fvcore itself, in all and by module, and its count of parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore scripts a function on import, which torch deprecates
        from fvcore.nn import FlopCountAnalysis, parameter_count
    counted = FlopCountAnalysis(model.eval(), x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return counted.total(), parameter_count(model)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121"])
def test_totals_are_fvcores_and_the_plans(name: str) -> None:
    model = getattr(torchvision.models, name)(weights=None, num_classes=10)
    x = torch.randn(1, 3, 32, 32)
    result = surgeon.prune(model, x, flops=0.5, check=False)
    report, totals = result.report, result.plan.totals
    for k, (network, sums) in enumerate(((model, report.before), (result.model, report.after))):
        flops, params = fvcore(network, x)
        assert sums.flops == flops == totals["flops"][k]
        assert sums.params == params[""] == totals["params"][k]
        assert sums.bytes == sum(t.numel() * t.element_size() for t in network.state_dict().values())
        assert sums.bytes == totals["bytes"][k] and sums.memory == totals["memory"][k]
        for row in report.layers:
            assert row.params[k] == params[row.name] == result.plan.cost[row.name].params[k]
            assert row.flops[k] == result.plan.cost[row.name].flops[k]
    # The peak that was predicted is the peak of the small model when it is looked at anew.
    anew = surgeon.trace(result.model, x)
    assert report.after.memory == cost.memory(anew).total(anew.initial) < report.before.memory  # type: ignore[operator]


def test_groups_are_the_plans() -> None:
    result = surgeon.prune(Residual(), image(), ratio=0.5, scope="local")
    assert [(row.name, row.units, row.layers) for row in result.report.groups] == [
        ("stem", (8, 4), ("stem", "conv1", "conv2", "head")),  # in the order of the model
        ("conv1", (12, 6), ("conv1", "bn1", "conv2")),
    ]
    assert dict(result.report.pins) == {"head": "the model's output"}
    assert result.report.groups[0].share_cut == 0.5


# Filters of VGG-16 and the side of the image that they see (Simonyan & Zisserman, 2014, table 1, D).
VGG_16 = (
    (64, 224), (64, 224), (128, 112), (128, 112), (256, 56), (256, 56), (256, 56), (512, 28), (512, 28), (512, 28),
    (512, 14), (512, 14), (512, 14),
)  # fmt: skip


@pytest.fixture(scope="module")
def vgg() -> surgeon.Report:
    model, x = torchvision.models.vgg16(weights=None).features, torch.randn(1, 3, 224, 224)
    return compare(model, model, x, counts=(count_flops(model, x),) * 2)


def test_where_parameters_sit_in_vgg_16_and_where_flops_do(vgg: surgeon.Report) -> None:
    params, flops, inputs = [], [], 3
    for filters, side in VGG_16:
        params.append(filters * inputs * 9 + filters)  # with biases
        flops.append(filters * inputs * 9 * side * side)  # fvcore counts none for a bias
        inputs = filters
    found = list(vgg.shares(kind="Conv2d").values())
    assert len(found) == 13
    for share, own_params, own_flops in zip(found, params, flops):
        assert share.params == pytest.approx(own_params / sum(params), rel=1e-12)
        assert share.flops == pytest.approx(own_flops / sum(flops), rel=1e-12)
    last = found[-3:]
    assert sum(share.params for share in last) == pytest.approx(0.48, abs=0.005)
    assert sum(share.flops for share in last) == pytest.approx(0.09, abs=0.005)
    assert sum(params) == vgg.before.params == 14_714_688 and sum(flops) == vgg.before.flops == 15_346_630_656


def test_shares_of_some_layers() -> None:
    small = surgeon.prune(Residual(), image(), ratio=0.5, scope="local").report
    rows = {row.name: row for row in small.layers}
    found = small.shares("conv*")
    assert list(found) == ["conv1", "conv2"]
    assert found["conv1"] == Share(62208 / (62208 + 6912), 864 / (864 + 104))
    after = small.shares("conv*", after=True)["conv1"]
    assert after.params == rows["conv1"].params[1] / (rows["conv1"].params[1] + rows["conv2"].params[1])
    assert sum(share.flops for share in small.shares().values()) == pytest.approx(1)
    assert list(small.shares(kind="Linear")) == ["head"] and str(found["conv2"]).startswith("10.0% of the FLOPs")
    with pytest.raises(surgeon.SurgeonError, match="no layer is a 'Conv3d'; there are BatchNorm2d, Conv2d, Linear"):
        small.shares(kind="Conv3d")
    with pytest.raises(surgeon.SurgeonError, match=r"'conv3'.*conv"):
        small.shares("conv3")


def test_latency_is_measured_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def measure(*models: Any, **options: Any) -> Measurement:
        seen.update(options, models=models)
        return Measurement((0.002, 0.001), (1.0, 0.52), (0.0, 0.01), 15, options["backend"], 2, "cpu")

    monkeypatch.setattr(comparison, "measure", measure)
    model, small, x = Perceptron(), Perceptron(hidden=5), torch.randn(2, 6)
    assert surgeon.compare(model, small, x).latency is None and not seen
    latency = surgeon.compare(model, small, x, latency=True).latency
    assert latency is not None and latency.seconds == (0.002, 0.001) and latency.ratio == 0.52
    assert (latency.spread, latency.runs, latency.backend, latency.threads) == (0.01, 15, "eager", 2)
    assert seen["models"] == (model, small) and seen["example_inputs"] is x
    surgeon.compare(model, small, x, latency="compile")
    assert seen["backend"] == "compile"


def test_latency_is_measured_by_the_clock() -> None:
    model, x = Perceptron(), torch.randn(2, 6)
    latency = surgeon.compare(model, Perceptron(hidden=5), x, latency=True).latency
    assert latency is not None and latency.runs and min(latency.seconds) > 0 and latency.device == "cpu"
    with pytest.raises(surgeon.SurgeonError, match="no back end 'abacus'"):
        surgeon.compare(model, model, x, latency="abacus")


def test_a_bound_on_latency_is_in_the_report() -> None:
    result = surgeon.prune(Residual(16, 24), image(16), flops=0.5)
    plan = result.plan
    totals, settings = {**plan.totals, "latency": (0.004, 0.003)}, {**plan.settings, "latency_backend": "compile"}
    timed = surgeon.Plan(**{**vars(plan), "totals": totals, "settings": settings})
    latency = comparison.within(timed, result.model)
    assert latency is not None and latency.seconds == (0.004, 0.003) and latency.ratio == 0.75
    assert latency.backend == "compile" and comparison.within(plan, result.model) is None


def test_environment_is_told_and_its_date_does_not_matter() -> None:
    model = Perceptron()
    first, second = (surgeon.compare(model, model, torch.randn(1, 6)) for _ in range(2))
    assert first.environment is not None and first.environment.torch == torch.__version__
    assert first.environment.surgeon == surgeon.__version__ and first.environment.threads == torch.get_num_threads()
    assert first == second


def test_plot_draws_what_the_report_says(tmp_path: Path) -> None:
    report = surgeon.prune(Residual(), image(), ratio=0.5, scope="local").report
    figure = report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    flops, params, parts, widths = figure.axes
    rows = [row for row in report.layers if row.name != "bn1"]  # norms have no weights to speak of
    for axes, pairs in ((flops, [r.flops for r in rows]), (params, [r.params for r in rows])):
        assert [bar.get_height() for bar in axes.patches] == [p[0] for p in pairs] + [p[1] for p in pairs]
    shares = report.shares("stem", "conv*", "head")
    heights = [s.flops for s in shares.values()] + [s.params for s in shares.values()]
    assert [bar.get_height() for bar in parts.patches] == pytest.approx(heights)
    assert [bar.get_height() for bar in widths.patches] == [8, 12, 8, 5, 4, 6, 4, 5]
    assert [label.get_text() for label in widths.get_xticklabels()] == ["stem", "conv1", "conv2", "head"]
