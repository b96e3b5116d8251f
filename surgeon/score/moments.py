"""Scores from the second moments of what layers are given: what is lost after the best refit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from surgeon.calibrate import Moments, calibration, input_moments, layers, record
from surgeon.modules import entering
from surgeon.score.magnitude import l1
from surgeon.score.readers import Reader, columns, readers

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph, Group

# Share of the mean variance of a layer's inputs that is added to each, as in a refit.
RIDGE = 1e-3
# Units go in at most so many steps, with the scores of those that stay brought up to date after each.
STEPS = 128


def obs(graph: DependencyGraph, data: Iterable[Any], samples: int = 512, memory: float = 2**30) -> dict[str, Tensor]:
    """Error that removing a unit leaves after all layers that read it are refitted to what stays.

    Units are removed one by one, the cheapest first, and the others are judged anew: the score of a unit is the
    largest such error up to its removal. With the inverse second moment ``P`` of a layer's inputs and its weight
    ``W``, removing the inputs J costs ``tr(W_J P_JJ^-1 W_J')`` (Hassibi and Stork, 1993, "Second order derivatives for
    network pruning: Optimal Brain Surgeon"; blockwise as in Frantar and Alistarh, 2022, "Optimal Brain Compression").
    Costs of the layers that read a unit are added up, each as a share of the variance of its results. Groups that no
    layer reads that could be refitted get their L1 norms.
    """
    with torch.no_grad(), entering(graph.method, graph.model):
        tapes = [record(graph.model, given) for given in calibration(data, samples)]
        known, found = input_moments(tapes, memory=memory), layers(tapes[0])
    leaves, plain, scores = tapes[0].leaves, l1(graph), {}
    for group in graph.free:
        read = readers(graph, group, found)
        scores[group.name] = _removed(graph, group, read, known, leaves) if read else plain[group.name]
    return scores


class _Layer:
    """A layer that loses inputs: its weight after the removals so far, and the inverse second moment."""

    def __init__(self, weight: Tensor, moments: Moments) -> None:
        self.weight = weight.detach().double().cpu().clone()  # [g, o, k]
        xx = (moments.xx if moments.xx.dim() == 3 else torch.diag_embed(moments.xx)).cpu()
        spread = ((self.weight @ xx) * self.weight).sum()
        mean = xx.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-300)
        eye = torch.eye(xx.shape[1], dtype=torch.float64, device=xx.device)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(xx + RIDGE * mean.view(-1, 1, 1) * eye))
        self.scale = 1 / float(spread.clamp(min=1e-300))

    def cost(self, taken: Sequence[Tensor]) -> Tensor:
        """Return what removing each set of columns costs, ``[units]``; columns count through the groups."""
        sizes = {len(c) for c in taken}
        if sizes == {0}:
            return torch.zeros(len(taken), dtype=torch.float64)
        if len(sizes) > 1:
            return torch.cat([self.cost([c]) for c in taken])
        at = torch.stack(list(taken))  # [units, size]
        width = self.inverse.shape[1]
        group, inside = at // width, at % width
        same = group.unsqueeze(2) == group.unsqueeze(1)
        block = self.inverse[group.unsqueeze(2), inside.unsqueeze(2), inside.unsqueeze(1)] * same
        weight = self.weight[group, :, inside]  # [units, size, o]
        # Columns of different groups belong to different filters: they only meet through their own group.
        inverse = torch.linalg.pinv(block, hermitian=True)
        cost = torch.zeros(len(taken), dtype=torch.float64)
        for g in group.unique():
            mine = weight * (group == g).unsqueeze(2)
            cost += torch.einsum("uio,uij,ujo->u", mine, inverse, mine)
        return cost * self.scale

    def remove(self, taken: Tensor) -> None:
        """Refit to what stays."""
        width = self.inverse.shape[1]
        for g in (taken // width).unique().tolist():
            at = taken[taken // width == g] % width
            inverse = self.inverse[g]
            solved = torch.linalg.pinv(inverse[at][:, at], hermitian=True) @ inverse[at]
            self.weight[g] -= self.weight[g][:, at] @ solved
            self.inverse[g] = inverse - inverse[:, at] @ solved
            self.inverse[g][at], self.inverse[g][:, at], self.weight[g][:, at] = 0, 0, 0


def _removed(
    graph: DependencyGraph,
    group: Group,
    read: Sequence[Reader],
    known: Mapping[str, Moments],
    leaves: Mapping[str, Tensor],
) -> Tensor:
    """Return the scores of one group, ``[units]``."""
    many = len(group.units)
    taken = columns(graph, group, read)
    state = [_Layer(reader.layer.first.matrix(leaves), known[reader.layer.name]) for reader in read]
    scores, left, worst = torch.zeros(many, dtype=torch.float64), list(range(many)), 0.0
    while left:
        costs = sum((s.cost([c[u] for u in left]) for s, c in zip(state, taken)), torch.zeros(len(left)).double())
        order = costs.argsort(stable=True)[: max(1, many // STEPS)].tolist()
        for place in order:
            worst = max(worst, float(costs[place]))
            scores[left[place]] = worst
            for s, c in zip(state, taken):
                if len(c[left[place]]):
                    s.remove(c[left[place]])
        left = [unit for place, unit in enumerate(left) if place not in order]
    return scores
