"""Every criterion against the same thing written out for one tiny network."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import surgeon
from surgeon.errors import DataError, ScoreError
from surgeon.score import CRITERIA, curves
from tests.nets import Perceptron, Residual, image

Batches = list[tuple[Tensor, Tensor]]


def network() -> tuple[Perceptron, Batches]:
    model = Perceptron().double().eval()
    return model, [(torch.randn(n, 6, dtype=torch.float64), torch.randint(0, 4, (n,))) for n in (7, 9)]


def hidden(model: Perceptron, data: Batches) -> Tensor:
    return torch.relu(model.first(torch.cat([x for x, _ in data]))).detach()


def slopes(model: Perceptron, data: Batches) -> list[dict[str, Tensor]]:
    """Return the gradients of each batch."""
    found = []
    for x, y in data:
        names, leaves = zip(*model.named_parameters())
        found.append(dict(zip(names, torch.autograd.grad(F.cross_entropy(model(x), y), leaves))))
    return found


def per_unit(model: Perceptron, of: Callable[[str, Tensor], Tensor]) -> Tensor:
    """Sum over all weights of a hidden unit."""
    parts = {name: of(name, p.detach()) for name, p in model.named_parameters()}
    return parts["first.weight"].sum(1) + parts["first.bias"] + parts["last.weight"].sum(0)


def averaged(model: Perceptron, data: Batches, each: Callable[..., Tensor], then: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([then(per_unit(model, lambda n, w, g=g: each(w, g[n]))) for g in slopes(model, data)]).mean(0)


def mean_slopes(model: Perceptron, data: Batches) -> dict[str, Tensor]:
    every = slopes(model, data)
    return {name: sum(g[name] for g in every) / len(every) for name in every[0]}


def grasp(model: Perceptron, data: Batches) -> Tensor:
    total = torch.zeros(10, dtype=torch.float64)
    for x, y in data:
        names, leaves = zip(*model.named_parameters())
        g = torch.autograd.grad(F.cross_entropy(model(x), y), leaves, create_graph=True)
        product = dict(zip(names, torch.autograd.grad(sum((a * a.detach()).sum() for a in g), leaves)))
        total += per_unit(model, lambda n, w, product=product: w * product[n]) / len(data)
    return total


def obs(model: Perceptron, data: Batches) -> Tensor:
    """Remove the unit with the least error after a refit, by trying them all."""
    h, weight = hidden(model, data), model.last.weight.detach()
    c = torch.cov(h.T, correction=0)
    c = c + 1e-3 * c.diagonal().mean() * torch.eye(10)
    left, scores, lost, worst = list(range(10)), torch.zeros(10, dtype=torch.float64), 0.0, 0.0
    whole = float((weight @ torch.cov(h.T, correction=0) * weight).sum())

    def error(kept: list[int]) -> float:
        if not kept:
            return float(((weight @ c) * weight).sum())
        fit = torch.linalg.solve(c[kept][:, kept], c[kept] @ weight.T).T
        return float((weight @ c * weight).sum() - (fit @ c[kept][:, kept] * fit).sum())

    while left:
        after = {u: error([v for v in left if v != u]) for u in left}
        unit = min(after, key=after.__getitem__)
        worst = max(worst, (after[unit] - lost) / whole)
        scores[unit], lost = worst, after[unit]
        left.remove(unit)
    return scores


def synflow(model: Perceptron, data: Batches) -> Tensor:
    twin = Perceptron().double()
    twin.load_state_dict({name: p.abs() for name, p in model.state_dict().items()})
    twin(torch.ones(7, 6, dtype=torch.float64)).sum().backward()
    return per_unit(twin, lambda n, w: w * twin.get_parameter(n).grad)


def lamp(model: Perceptron, data: Batches) -> Tensor:
    norms = per_unit(model, lambda n, w: w**2)
    return torch.stack([v / norms[norms >= v].sum() for v in norms])


BY_HAND: dict[str, Callable[[Perceptron, Batches], Tensor]] = {
    "l1": lambda m, d: per_unit(m, lambda n, w: w.abs()),
    "l2": lambda m, d: per_unit(m, lambda n, w: w**2).sqrt(),
    "linf": lambda m, d: m.first.weight.detach().abs().amax(1),
    "lamp": lamp,
    "fpgm": lambda m, d: torch.stack([(m.first.weight - row).norm(dim=1).sum() for row in m.first.weight]).detach(),
    "taylor": lambda m, d: averaged(m, d, lambda w, g: w * g, torch.abs),
    "taylor_squared": lambda m, d: averaged(m, d, lambda w, g: w * g, torch.square),
    "fisher": lambda m, d: averaged(m, d, lambda w, g: w**2 * g**2 / 2, lambda s: s),
    "gradient": lambda m, d: averaged(m, d, lambda w, g: g.abs(), lambda s: s),
    "snip": lambda m, d: per_unit(m, lambda n, w: (w * mean_slopes(m, d)[n]).abs()),
    "grasp": grasp,
    "synflow": synflow,
    "activation": lambda m, d: hidden(m, d).mean(0),
    "apoz": lambda m, d: (hidden(m, d) > 0).double().mean(0),
    "variance": lambda m, d: hidden(m, d).var(0, correction=0) * m.last.weight.detach().square().sum(0),
    "wanda": lambda m, d: hidden(m, d).square().mean(0).sqrt() * m.last.weight.detach().abs().sum(0),
    "obs": obs,
}


def options(name: str, data: Batches) -> dict[str, object]:
    given = {"data": data, "loss": F.cross_entropy, "example_inputs": data[0][0]}
    return {key: given[key] for key in signature(CRITERIA[name]).parameters if key in given}


@pytest.mark.parametrize("name", BY_HAND)
def test_against_a_reference(name: str) -> None:
    model, data = network()
    graph = surgeon.trace(model, data[0][0])
    found = surgeon.score(graph, name, **options(name, data))["first"]
    assert torch.allclose(found, BY_HAND[name](model, data), rtol=1e-6, atol=1e-12)


def test_all_criteria_are_tested() -> None:
    assert CRITERIA.keys() == BY_HAND.keys() | {"random", "bn_scale"}


def test_norm_scales_are_compared_with_their_mean() -> None:
    model = Residual().eval()
    model.bn1.weight.data = torch.rand(12) - 0.5
    scores = surgeon.score(surgeon.trace(model, image()), "bn_scale")
    assert torch.allclose(scores["conv1"], (model.bn1.weight.abs() / model.bn1.weight.abs().mean()).double())
    assert math.isclose(float(scores["stem"].mean()), 1.0, rel_tol=1e-9)


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_models_are_left_as_they_were(name: str) -> None:
    model = Residual().double().train()  # in double precision nothing is copied on the way to float64 sums
    model.conv1.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    data = [(image().double(), torch.randint(0, 5, (2,))) for _ in range(2)]
    scores = surgeon.score(surgeon.trace(model, data[0][0]), name, **options(name, data))
    assert all(torch.isfinite(value).all() and value.dtype == torch.float64 for value in scores.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and model.training and model.bn1.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.conv2.weight.requires_grad and not model.conv1.weight.requires_grad


@pytest.mark.parametrize("name", ["obs", "variance", "taylor"])
def test_grouped_flattened_and_depthwise_layers(name: str) -> None:
    """Units that take several inputs along, and layers whose filters see a part of them."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 4, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).eval()
    data = [(torch.randn(6, 3, 10, 10), torch.randint(0, 3, (6,)))]
    graph = surgeon.trace(model, data[0][0])
    scores = surgeon.score(graph, name, **options(name, data))
    assert all(len(scores[group.name]) == len(group.units) for group in graph.free)
    assert all(float(value.max()) > 0 for value in scores.values())


class Attention(nn.Module):
    """Two heads, fused or spelled out."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.up, self.down = nn.Linear(8, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v) if self.fused else ((q @ k.mT) * 4**-0.5).softmax(3) @ v
        return self.down(torch.relu(self.up(mixed.transpose(1, 2).flatten(2)))).mean(1)


def test_second_derivatives_go_through_fused_attention() -> None:
    fused, plain = Attention(True).eval(), Attention(False).eval()
    plain.load_state_dict(fused.state_dict())
    data = [(torch.randn(7, 5, 6), torch.randint(0, 4, (7,)))]
    found, wanted = (
        surgeon.score(surgeon.trace(model, data[0][0]), "grasp", **options("grasp", data))["up"]
        for model in (fused, plain)
    )
    assert wanted.abs().max() > 0
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))


def test_losses_are_checked() -> None:
    model, data = network()
    graph = surgeon.trace(model, data[0][0])
    with pytest.raises(ScoreError, match=r"scalar tensor, got shape \[7\]"):
        surgeon.score(graph, "taylor", data=data, loss=lambda out, y: F.cross_entropy(out, y, reduction="none"))
    with pytest.raises(ScoreError, match="does not depend"):
        surgeon.score(graph, "taylor", data=data, loss=lambda out, y: out.detach().sum())
    with pytest.raises(DataError, match="the loss is nan"):
        surgeon.score(graph, "taylor", data=data, loss=lambda out, y: out.sum() * float("nan"))
    with pytest.raises(ScoreError, match="needs data and loss"):
        surgeon.score(graph, "taylor")
    with pytest.raises(ScoreError, match="takes no 'data'"):
        surgeon.score(graph, "l1", data=data)
    with pytest.raises(DataError, match="batch 1 is not finite"):
        surgeon.score(graph, "variance", data=[data[0], (data[1][0] / 0, data[1][1])])
    with pytest.raises(DataError, match="no batch"):
        surgeon.score(graph, "wanda", data=iter(()))


def test_curves_rise_from_zero_and_know_what_costs_nothing() -> None:
    model, data = network()
    model.first.weight.data[3], model.first.bias.data[3] = model.first.weight.data[8], model.first.bias.data[8]
    model.first.weight.data[5], model.first.bias.data[5] = 0, -1
    graph = surgeon.trace(model, data[0][0])
    scores = surgeon.score(graph, "obs", data=data)
    steps, losses = curves(graph, scores, data)["first"]
    assert steps.tolist() == list(range(10)) and losses[0] == 0 and (losses[1:] >= losses[:-1]).all()
    assert losses[2] < 1e-4 < losses[6] < losses[9]


def _score(rank: int, port: int, name: str, path: str) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model, data = network()
    graph = surgeon.trace(model, data[0][0])
    scores = surgeon.score(graph, name, **options(name, data[rank : rank + 1]))
    torch.save(scores, f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["taylor", "snip", "variance", "obs"])
def test_processes_share_their_sums(name: str, tmp_path: Path) -> None:
    """Two processes with a batch each find what one with both finds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_score, (port, name, str(tmp_path)), nprocs=2)
    torch.manual_seed(0)
    model, data = network()
    alone = surgeon.score(surgeon.trace(model, data[0][0]), name, **options(name, data))["first"]
    for rank in range(2):
        assert torch.allclose(torch.load(tmp_path / f"{rank}.pt")["first"], alone, rtol=1e-9)


def test_inputs_of_all_calls_of_a_layer_count() -> None:
    """A layer that reads two values sees the rows of both; its weight is one."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.both, self.last = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x))
            return self.last(torch.tanh(self.both(y)) * self.both(y * 2 + 1))

    model, x = Twice().double().eval(), torch.randn(30, 6, dtype=torch.float64)
    y = torch.relu(model.first(x)).detach()
    rows = torch.cat([y, y * 2 + 1])
    size = model.both.weight.detach().square().sum(0)
    graph = surgeon.trace(model, x)
    scores = surgeon.score(graph, "variance", data=[x])
    assert torch.allclose(scores["first"], rows.var(0, correction=0) * size)
    steps, losses = curves(graph, surgeon.score(graph, "obs", data=[x]), [x])["first"]
    assert losses[0] == 0 < losses[1] <= losses[-1] and len(steps) == 8


def test_transposed_convolutions_read_too() -> None:
    """What a filter of theirs sees are inputs that lie apart, with zeros in between."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 4, 3, stride=2), nn.Conv2d(4, 2, 1)).double().eval()
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    given = model[0](x).detach()
    apart = given.new_zeros(5, 6, 7, 7)
    apart[:, :, ::2, ::2] = given
    rows = F.unfold(apart, 3, padding=2).view(5, 6, 9, -1).permute(1, 2, 0, 3).reshape(6, 9, -1)
    spread = rows.var(2, correction=0).flip(1)  # taps of the weight run the other way
    wanted = (spread * model[1].weight.detach().square().sum(1).view(6, 9)).sum(1)
    scores = surgeon.score(surgeon.trace(model, x), "variance", data=[x])
    assert torch.allclose(scores["0"], wanted)


def test_parts_of_a_weight_are_layers_of_their_own() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.both, self.last = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x))
            a, b = self.both.weight.chunk(2)
            return self.last(F.linear(y, a) * torch.sigmoid(F.linear(y + 2, b)))

    model, x = Parts().double().eval(), torch.randn(30, 6, dtype=torch.float64)
    y = torch.relu(model.first(x)).detach()
    scores = surgeon.score(surgeon.trace(model, x), "wanda", data=[x])
    a, b = model.both.weight.detach().abs().chunk(2)
    wanted = sum(v.square().mean(0).sqrt() * w.sum(0) for v, w in ((y, a), (y + 2, b)))
    assert torch.allclose(scores["first"], wanted)


@pytest.mark.parametrize("name", ["obs", "variance", "apoz"])
def test_groups_that_no_known_layer_reads_get_their_norms(name: str) -> None:
    """Nothing is known of what a computed weight does with them, which does not make them worthless."""
    head = torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), head).eval()
    x = torch.randn(30, 6)
    graph = surgeon.trace(model, x)
    group = next((g.name for g in graph.free), None)
    if group is None:
        pytest.skip("pinned")
    assert torch.equal(surgeon.score(graph, name, data=[x])[group], surgeon.score(graph, "l1")[group])


def test_curves_keep_the_layout_of_results() -> None:
    """A weight of another layout would change that of results, and views of these would fail."""

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.next, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(20, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.next(torch.relu(self.first(x)))
            return self.last(y.view(len(y), -1))

    model, x = Views().eval(), torch.randn(8, 3, 6, 6)
    graph = surgeon.trace(model, x)
    assert "first" in curves(graph, surgeon.score(graph, "obs", data=[x]), [x])
