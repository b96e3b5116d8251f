"""Differential test: on networks that both support, a unit is what torch-pruning calls a group of one channel."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import surgeon
from surgeon.graph import DependencyGraph
from tests.zoo.networks import network

torch_pruning = pytest.importorskip("torch_pruning")

Coupled = set[tuple[str, str, int]]  # (layer, "in" or "out", channel)

SIDES = {"prune_in_channels": "in", "prune_out_channels": "out"}


def ours(graph: DependencyGraph, unit: int) -> Coupled:
    dead = graph.dead_classes([unit])
    found: Coupled = set()
    for place in graph.places:
        if place.parameter.endswith("weight") and len(place.dims) == 1:
            side = "in" if place.dims == (1,) else "out"
            found |= {(place.layer, side, int(i)) for i in dead[place.classes].nonzero()[0]}
    return found


def theirs(dependencies: object, names: dict[nn.Module, str], layer: nn.Module, channel: int) -> Coupled:
    out = (
        torch_pruning.prune_linear_out_channels
        if isinstance(layer, nn.Linear)
        else torch_pruning.prune_conv_out_channels
    )
    found: Coupled = set()
    for dependency, channels in dependencies.get_pruning_group(layer, out, idxs=[channel]):  # type: ignore[attr-defined]
        side = SIDES[dependency.handler.__name__]
        target = dependency.target.module
        if target in names:
            one_sided = isinstance(target, nn.BatchNorm2d) or getattr(target, "groups", 1) > 1
            found |= {(names[target], "out" if one_sided else side, int(i)) for i in channels}
    return found


@pytest.mark.parametrize(
    "name",
    ["alexnet", "vgg16_bn", "resnet18", "resnet50", "densenet121", "mobilenet_v2", "squeezenet1_0", "mnasnet0_5"],
)
def test_coupled_channels_agree(name: str) -> None:
    model, inputs = network(name, torch.float32)
    graph = surgeon.trace(model, inputs)
    names = {module: path for path, module in model.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dependencies = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=inputs)
    compared = 0
    for group in graph.free:
        for unit in group.units[[0, -1]]:
            coupled = ours(graph, unit)
            layer, channel = next(
                (path, i)
                for path, side, i in sorted(coupled)
                if side == "out" and isinstance(model.get_submodule(path), (nn.Conv2d, nn.Linear))
            )
            assert coupled == theirs(dependencies, names, model.get_submodule(layer), channel), group.name
            compared += 1
    assert compared == 2 * len(graph.free) > 0
