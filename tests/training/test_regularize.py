"""Penalties on units are what a loop over units gives, slopes included, and drive units to zero."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import surgeon
from surgeon.errors import NothingPrunable, TrainingError
from surgeon.graph import DependencyGraph
from surgeon.groups import Group
from surgeon.regularize import KINDS, Regularizer, UnitSums
from tests.nets import Perceptron, Residual, image
from tests.zoo.attention import TiedLM, ViT
from tests.zoo.blocks import DenseNet, SqueezeExciteNet
from tests.zoo.grouped import ResNeXt, ShuffleNet

MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "linear": lambda: (Perceptron(), torch.randn(2, 6)),
    "residual": lambda: (Residual(), image()),
    "grouped": lambda: (ResNeXt(), image(12)),
    "shuffled": lambda: (ShuffleNet(), image(12)),
    "dense": lambda: (DenseNet(), image(16)),
    "gated": lambda: (SqueezeExciteNet(), image(16)),
    "attention": lambda: (ViT(), image(16)),
    "tied": lambda: (TiedLM(), torch.randint(10, (2, 9))),
}


def traced(name: str) -> DependencyGraph:
    model, x = MODELS[name]()
    return surgeon.trace(model.double().eval(), x.double() if x.is_floating_point() else x)


def weights(graph: DependencyGraph, unit: int) -> list[tuple[Tensor, Tensor]]:
    """Return, for every place, the parameter and a mask of the positions that die with a unit: by hand, one by one."""
    dead = graph.dead_classes([unit])
    found = []
    for place in graph.places:
        if place.parameter in graph.parameters and dead[place.classes].any():
            p = graph.tensor(place.parameter)
            shape = [size if d in place.dims else 1 for d, size in enumerate(p.shape)]
            found.append((p, torch.from_numpy(dead[place.classes]).reshape(shape).expand(p.shape)))
    return found


def movable(graph: DependencyGraph) -> list[Group]:
    outer, _ = graph.nesting()
    return [group for group in graph.free if group.name not in outer]


def square(graph: DependencyGraph, unit: int) -> Tensor:
    return sum((p[mask].square().sum() for p, mask in weights(graph, unit)), torch.zeros(()).double())


def size(graph: DependencyGraph, unit: int) -> int:
    return sum(int(mask.sum()) for _, mask in weights(graph, unit))


def lasso_by_hand(graph: DependencyGraph) -> Tensor:
    units = [unit for group in movable(graph) for unit in group.units.tolist()]
    return sum((size(graph, u) ** 0.5 * square(graph, u).sqrt() for u in units), torch.zeros(()).double())


def hoyer_by_hand(graph: DependencyGraph) -> Tensor:
    total = torch.zeros(()).double()
    for group in movable(graph):
        squares = torch.stack([square(graph, unit) for unit in group.units.tolist()])
        total = total + squares.sqrt().sum() ** 2 / squares.sum()
    return total


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("kind", "by_hand"), [("group_lasso", lasso_by_hand), ("hoyer_square", hoyer_by_hand)])
def test_penalty_and_slopes_are_those_of_a_loop_over_units(name: str, kind: str, by_hand: Any) -> None:
    graph = traced(name)
    parameters = [p for p in graph.model.parameters() if p.requires_grad]
    penalty, expected = Regularizer(graph, kind, 0.5)(), 0.5 * by_hand(graph)
    assert torch.allclose(penalty, expected, rtol=1e-10)
    slopes = [torch.autograd.grad(each, parameters, allow_unused=True) for each in (penalty, expected)]
    for found, wanted in zip(*slopes):
        zeros = torch.zeros(()).double()
        assert torch.allclose(zeros if found is None else found, zeros if wanted is None else wanted, rtol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_sums_are_those_of_the_graph(name: str) -> None:
    graph = traced(name)
    sums = UnitSums(graph, heads="both")
    squares = {n: graph.tensor(n).detach().square() for n in graph.parameters}
    for group, expected in graph.per_unit(squares).items():
        assert torch.allclose(sums()[sums.groups[group]], expected, rtol=1e-10), group


def test_heads_or_their_columns() -> None:
    graph = traced("attention")
    outer, inner = graph.nesting()
    assert outer and inner
    columns, rows = set(UnitSums(graph).groups), set(UnitSums(graph, heads=True).groups)
    assert not columns & outer and outer <= rows and not rows & inner


@pytest.mark.parametrize("kind", ["group_lasso", "hoyer_square", "bn_scale", "growing"])
def test_gradients(kind: str) -> None:
    graph = traced("residual")
    plan = surgeon.plan(graph, surgeon.score(graph), ratio=0.4, scope="local") if kind == "growing" else None
    penalty = Regularizer(graph, kind, 0.1, plan=plan)
    model = graph.model
    names = list(penalty.sums.places)
    owners = [(model.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2]) for n in names]
    originals = [getattr(owner, leaf) for owner, leaf in owners]

    def value(*tensors: Tensor) -> Tensor:
        for (owner, leaf), tensor in zip(owners, tensors):
            del owner._parameters[leaf]
            setattr(owner, leaf, tensor)
        try:
            return penalty()
        finally:
            for (owner, leaf), p in zip(owners, originals):
                delattr(owner, leaf)
                owner.register_parameter(leaf, p)

    assert torch.autograd.gradcheck(value, [p.detach().clone().requires_grad_() for p in originals])


def test_bn_scale_is_the_absolute_weights_of_norms() -> None:
    model = Residual()
    nn.init.normal_(model.bn1.weight)
    graph = surgeon.trace(model, image())
    assert torch.allclose(Regularizer(graph, "bn_scale", 0.1)(), 0.1 * model.bn1.weight.abs().sum())
    with pytest.raises(TrainingError, match="has none"):
        Regularizer(surgeon.trace(Perceptron(), torch.randn(2, 6)), "bn_scale")


def test_a_penalty_that_does_not_care_for_scale() -> None:
    model, x = Residual(), image()
    graph = surgeon.trace(model, x)
    invariant, other = Regularizer(graph, "hoyer_square", 1.0), Regularizer(graph, "group_lasso", 1.0)
    before = float(invariant().detach()), float(other().detach())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.1)
    assert float(invariant().detach()) == pytest.approx(before[0], rel=1e-5)
    assert float(other().detach()) == pytest.approx(0.1 * before[1], rel=1e-5)
    # Its slope is at right angles to the weights, and larger units grow while smaller ones shrink.
    graph = surgeon.trace(Perceptron(), torch.randn(2, 6))
    penalty = Regularizer(graph, "hoyer_square", 1.0)
    parameters = [p for n, p in graph.model.named_parameters() if n in penalty.sums.places]
    slopes = torch.autograd.grad(penalty(), [p for p in parameters if p.requires_grad])
    model = graph.model
    sizes = penalty.norms()["first"]
    level = sizes.square().sum() / sizes.sum()
    with torch.no_grad():
        for p, slope in zip(parameters, slopes):
            p -= 1e-4 * slope
    grown = penalty.norms()["first"] > sizes
    assert torch.equal(grown, sizes > level) and 0 < int(grown.sum()) < len(grown)


def test_units_that_are_gone_have_no_slope() -> None:
    model = Perceptron()
    with torch.no_grad():
        model.first.weight[3], model.first.bias[3], model.last.weight[:, 3] = 0, 0, 0
    graph = surgeon.trace(model, torch.randn(2, 6))
    for kind in ("group_lasso", "hoyer_square"):
        Regularizer(graph, kind, 1.0)().backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
        assert not model.first.weight.grad[3].any() and bool(model.first.weight.grad[2].any())
        model.zero_grad()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert float(Regularizer(graph, "hoyer_square", 1.0)().detach()) == 0


def test_half_precision_is_summed_in_single() -> None:
    model, x = Perceptron(hidden=64), torch.randn(2, 6)
    exact = Regularizer(surgeon.trace(model, x), "group_lasso", 1.0)()
    model.bfloat16()
    rough = Regularizer(surgeon.trace(model, x.bfloat16()), "group_lasso", 1.0)()
    assert rough.dtype == torch.float32 and torch.allclose(rough, exact, rtol=1e-2)


def test_gradients_can_be_added_where_the_loss_is_out_of_reach() -> None:
    torch.manual_seed(0)
    model, x, y = Perceptron(), torch.randn(8, 6), torch.randint(4, (8,))
    twin = copy.deepcopy(model)
    penalty, other = (Regularizer(surgeon.trace(net, x), "group_lasso", 0.01) for net in (model, twin))
    (F.cross_entropy(model(x), y) + penalty()).backward()
    F.cross_entropy(twin(x), y).backward()
    with torch.no_grad():
        assert other.add_gradients() == pytest.approx(float(penalty()))
    for p, q in zip(model.parameters(), twin.parameters()):
        assert torch.allclose(p.grad, q.grad, atol=1e-7)


# -- growing -----------------------------------------------------------------------------------------


def test_growing_presses_on_what_the_plan_takes() -> None:
    model, x = Residual(), image()
    graph = surgeon.trace(model, x)
    scores = surgeon.score(graph)
    plan = surgeon.plan(graph, scores, ratio=0.5, scope="local")
    penalty = Regularizer(graph, "growing", 0.1, plan=plan, every=2, ceiling=0.25)
    for group in graph.free:
        worst = scores[group.name].argsort()[: len(group.units) // 2]
        chosen = penalty.targets[penalty.sums.groups[group.name]].nonzero().squeeze(1)
        assert sorted(chosen.tolist()) == sorted(worst.tolist())
    factors = []
    for _ in range(6):
        factors.append(penalty.factor)
        penalty.step()
    assert factors == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.25, 0.25])
    again = Regularizer(graph, "growing", 0.1, plan={}, every=2, ceiling=0.25)
    again.load_state_dict(penalty.state_dict())
    assert again.factor == penalty.factor and torch.equal(again(), penalty())


@pytest.mark.parametrize("name", ["grouped", "attention", "shuffled"])
def test_what_a_plan_takes(name: str) -> None:
    graph = traced(name)
    plan = surgeon.plan(graph, surgeon.score(graph), ratio=0.5)
    removed = UnitSums(graph).removed(plan)
    assert int(removed.sum()) > 0
    small = surgeon.operate(graph.model, plan)
    # What is left of the sums is what is left of the weights, each counted once along every dimension it is cut in.
    gone = graph.dead_classes([u for g, at in UnitSums(graph).groups.items() for u in _units(graph, g)[removed[at]]])
    for place in graph.places:
        cut = plan.cuts.get(place.parameter)
        for selection in cut.selections if cut is not None else ():
            if selection.dims == place.dims:
                assert not gone[place.classes][selection.keep].any()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in graph.model.parameters())


def _units(graph: DependencyGraph, name: str) -> Any:
    return next(g.units for g in graph.free if g.name == name)


# -- in training -------------------------------------------------------------------------------------


def digits() -> tuple[Tensor, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    return torch.as_tensor(x, dtype=torch.float32) / 16, torch.as_tensor(y)


def trained(kind: str, strength: float, epochs: int = 12) -> tuple[nn.Module, dict[str, Tensor], float]:
    """Train on digits with a penalty; return the model, unit norms by group, and the accuracy."""
    torch.manual_seed(0)
    x, y = digits()
    model = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))
    graph = surgeon.trace(model.eval(), x[:2])
    scores = surgeon.score(graph)
    plan = surgeon.plan(graph, scores, ratio=0.5) if kind == "growing" else None
    penalty = Regularizer(graph, kind, strength, plan=plan)
    data = list(zip(x.split(64), y.split(64)))
    surgeon.finetune(
        model, data, epochs=epochs, lr=1e-2, weight_decay=0.0, penalty=penalty, after_step=penalty.step, norms=None
    )
    model.eval()
    with torch.no_grad():
        right = float((model(x).argmax(1) == y).float().mean())
    return model, penalty.norms(), right


@pytest.mark.parametrize(("kind", "strength"), [("group_lasso", 5e-3), ("hoyer_square", 3e-2), ("growing", 1e-3)])
def test_units_are_driven_to_zero_on_digits(kind: str, strength: float) -> None:
    """Half of the units can be cut without harm, which takes much from the model that was trained without."""
    x, y = digits()
    accuracies = []
    for factor in (strength, 1e-12):
        model, _, right = trained(kind, factor)
        assert right > 0.9
        small = surgeon.prune(model, x[:2], ratio=0.5).model
        with torch.no_grad():
            accuracies.append(float((small(x).argmax(1) == y).float().mean()) - right)
    assert accuracies[0] > -0.02
    assert accuracies[0] > accuracies[1] + 0.05


def test_scales_of_norms_are_driven_to_zero() -> None:
    """The shift of a norm is not penalised, so a cut still takes something; the scales say what is to go."""
    found = []
    for strength in (0.1, 1e-12):
        model, _, right = trained("bn_scale", strength)
        found.append(model[1].weight.detach().abs().sort().values)
        assert right > 0.9
    assert float(found[0][5]) < 1e-3 and float(found[1][0]) > 0.5


def test_the_model_that_is_left_is_followed() -> None:
    model, x = Residual(), image()
    graph = surgeon.trace(model, x)
    penalty = Regularizer(graph, "group_lasso", 1.0)
    before = penalty.sums.count
    plan = surgeon.plan(graph, surgeon.score(graph), ratio=0.5)
    surgeon.operate(model, plan, inplace=True)
    left = surgeon.trace(model, x)
    penalty.follow(left)
    assert penalty.sums.count < before
    assert torch.equal(penalty(), Regularizer(left, "group_lasso", 1.0)())


MISTAKES = [
    ({"kind": "lasso"}, "unknown regularizer 'lasso'"),
    ({"strength": 0.0}, "strength=0.0"),
    ({"strength": float("nan")}, "strength=nan"),
    ({"kind": "growing"}, "give plan="),
    ({"kind": "group_lasso", "plan": {}}, "takes no plan"),
    ({"kind": "growing", "plan": {"firts": [1]}}, "no free group 'firts'"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_mistakes_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Regularizer(surgeon.trace(Perceptron(), torch.randn(2, 6)), **options)


def test_nothing_to_press_on() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(NothingPrunable):
        Regularizer(surgeon.trace(model, torch.randn(2, 3)))


def test_every_kind_names_its_paper() -> None:
    assert all("20" in (function.__doc__ or "") for function in KINDS.values())
