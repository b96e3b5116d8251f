"""Rank channels by a criterion of your own: a function ``(graph, group) -> Tensor[units]``, higher stays.

    python examples/custom_criterion.py

The criterion here asks how loud a channel is and how closely it is listened to. Behind a batch norm the size of a
filter says nothing, since the norm divides it out; the norm's scale says how loud the channel is. How much of that
arrives is up to the weights that read the channel.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import surgeon


def per_unit(graph, group, values: dict[str, Tensor]) -> Tensor:
    """Add up numbers given for the positions of some of the group's parameters, [units].

    A ``Place`` in ``group.members`` is a parameter and the dimensions along which the group runs through it;
    ``place.classes`` tells for every position along them which class of labels it belongs to. A unit takes one or more
    classes along when it goes: the row ``closure[unit]`` has a one for each.
    """
    total = np.zeros(graph.solution.classes)
    for place in group.members:
        if place.parameter in values:
            value = values[place.parameter]
            rest = [dim for dim in range(value.dim()) if dim not in place.dims]
            along = value.sum(rest) if rest else value
            total += np.bincount(place.classes, along.double().flatten().numpy(), len(total))
    return torch.from_numpy(graph.solution.closure[group.units] @ total)


@torch.no_grad()
def loud_and_heard(graph, group) -> Tensor:
    """Return |batch-norm scale| times the norm of the weights that read the channel, [units]."""
    scales, readers = {}, {}
    for place in group.members:
        tensor = graph.tensor(place.parameter)
        if isinstance(graph.model.get_submodule(place.layer), nn.BatchNorm2d) and place.parameter.endswith("weight"):
            scales[place.parameter] = tensor.abs()
        elif place.sides == {"in"}:
            readers[place.parameter] = tensor.square()
    heard = per_unit(graph, group, readers).sqrt()
    return heard * per_unit(graph, group, scales) if scales else heard


def network() -> nn.Module:
    """Three convolutions with batch norms, [n, 3, h, w] -> [n, 10], with scales as uneven as training leaves them."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.0, 1.0)
            nn.init.normal_(module.bias, 0.0, 0.1)
            nn.init.normal_(module.running_mean, 0.0, 0.1)
    return model.eval()


def spread(outputs: Tensor) -> Tensor:
    """Return what sets the outputs of different images apart; a shift that all share is soon learnt away."""
    return outputs - outputs.mean(0)


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    model, x = network(), torch.randn(64, 3, 32, 32)
    whole = spread(model(x))
    for criterion in ("random", "l1", loud_and_heard):
        result = surgeon.prune(model, x, flops=0.7, criterion=criterion)
        change = (spread(result.model(x)) - whole).norm() / whole.norm()
        name = criterion if isinstance(criterion, str) else criterion.__name__
        widths = ", ".join(str(group) for group in result.plan.groups)
        print(f"{name:>14}: differences between outputs change by {change:3.0%}; layers {widths}")


if __name__ == "__main__":
    main()
