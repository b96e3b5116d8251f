"""The report's numbers are the model's own, and fvcore's."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

import surgeon
from tests.nets import Residual, image


@pytest.fixture(scope="module")
def result() -> surgeon.Result:
    return surgeon.prune(Residual(), image(), ratio=0.5, scope="local")


def test_totals_are_counted_not_predicted(result: surgeon.Result) -> None:
    report, small = result.report, result.model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore scripts a function on import, which torch deprecates
        from fvcore.nn import FlopCountAnalysis
    counted = FlopCountAnalysis(small.eval(), image()).unsupported_ops_warnings(False)
    assert report.after.flops == counted.total()
    assert report.after.params == sum(p.numel() for p in small.parameters())
    assert report.after.bytes == sum(t.numel() * t.element_size() for t in small.state_dict().values())
    assert report.compression_ratio == report.before.params / report.after.params > 1
    assert report.theoretical_speedup == report.before.flops / report.after.flops > 1


def test_layers_add_up(result: surgeon.Result) -> None:
    rows = {row.name: row for row in result.report.layers}
    assert rows["conv1"].shape == ((12, 8, 3, 3), (6, 4, 3, 3))
    assert rows["conv1"].share_cut == pytest.approx(0.75)
    assert rows["conv1"].flops == (2 * 36 * 12 * 8 * 9, 2 * 36 * 6 * 4 * 9)
    for side in (0, 1):
        total = (result.report.before, result.report.after)[side]
        assert sum(row.params[side] for row in rows.values()) == total.params
        assert sum(row.flops[side] for row in rows.values()) == pytest.approx(total.flops)


def test_non_zero_weights_are_counted_apart(result: surgeon.Result) -> None:
    small = result.model
    dense = surgeon.compare(small, small, image())
    with torch.no_grad():
        kept = small.conv1.weight.clone()
        small.conv1.weight[0] = 0
        sparse = surgeon.compare(small, small, image())
        small.conv1.weight.copy_(kept)
    assert sparse.after.nonzero_params == dense.after.nonzero_params - 36
    assert sparse.after.nonzero_flops == pytest.approx(dense.after.nonzero_flops - 2 * 36 * 36)
    assert sparse.after.flops == dense.after.flops


def test_json(result: surgeon.Result) -> None:
    data = json.loads(result.report.to_json(), parse_constant=pytest.fail)
    assert data["after"]["params"] == result.report.after.params
    assert data["compression_ratio"] == result.report.compression_ratio


def test_proof_agrees_with_the_plan(result: surgeon.Result) -> None:
    proof = result.proof
    assert proof is not None and proof.flops[:2] == proof.flops[2:] == result.plan.totals["flops"]
    assert proof.params[0] == proof.params[1] and "masked original = small model" in str(proof)


def test_json_is_read_back_equal(result: surgeon.Result) -> None:
    report = result.report
    assert report.plan is result.plan and report.proof is result.proof and report.environment is not None
    again = surgeon.Report.from_json(report.to_json())
    assert again == report and again.to_json() == report.to_json()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "surgeon-report", "version": 2}'])
def test_other_files_are_no_reports(text: str) -> None:
    with pytest.raises(surgeon.SurgeonError, match="not a report"):
        surgeon.Report.from_json(text)
