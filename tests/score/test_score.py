"""Scores against sums written out by hand."""

from __future__ import annotations

import torch

import surgeon
from tests.nets import Residual, image


def test_magnitudes_sum_over_all_coupled_weights() -> None:
    model = Residual().double()
    graph = surgeon.trace(model, image().double())
    by_hand = {
        "conv1": sum(
            (
                model.conv1.weight.abs().sum((1, 2, 3)),
                model.bn1.weight.abs(),
                model.bn1.bias.abs(),
                model.conv2.weight.abs().sum((0, 2, 3)),
            )
        ),
        "stem": sum(
            (
                model.stem.weight.abs().sum((1, 2, 3)),
                model.stem.bias.abs(),
                model.conv1.weight.abs().sum((0, 2, 3)),
                model.conv2.weight.abs().sum((1, 2, 3)),
                model.conv2.bias.abs(),
                model.head.weight.abs().sum(0),
            )
        ),
    }
    scores = surgeon.score(graph, "l1")
    for group in graph.free:
        # units come in the order of their channels here: one class per channel
        assert torch.allclose(scores[group.name].sort().values, by_hand[group.name].sort().values)


def test_l2_is_the_norm_of_all_coupled_weights_together() -> None:
    model = Residual().double()
    graph = surgeon.trace(model, image().double())
    expected = (
        model.conv1.weight.square().sum((1, 2, 3))
        + model.bn1.weight.square()
        + model.bn1.bias.square()
        + model.conv2.weight.square().sum((0, 2, 3))
    ).sqrt()
    assert torch.allclose(surgeon.score(graph, "l2")["conv1"].sort().values, expected.sort().values)


def test_random_is_reproducible_and_callables_are_taken() -> None:
    graph = surgeon.trace(Residual(), image())
    first, again, other = (surgeon.score(graph, "random", seed=s)["conv1"] for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    mine = surgeon.score(graph, lambda graph, group: torch.arange(len(group.units)))
    assert mine["conv1"].tolist() == list(range(12))
