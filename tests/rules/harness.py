"""The commuting square of a rule: to cut the operands and run the op is to run the op and cut the result.

    operands --op--> result          The upper way runs on masked operands, with statistics over the survivors;
       | cut            | cut        where it is cut is what the rule says about the result's labels.
    smaller  --op--> smaller result

A case is written with the real op, called on the attributes of a namespace:

    @square("linear")
    def test_linear(case):
        case.check(lambda m: F.linear(m.x, m.w), x=case.tensor(2, 5), w=case.tensor(4, 5))

Every floating-point operand becomes a parameter whose every dimension may be cut, so a rule has to say what is coupled and
what has to stay for all of them. Operands also come dressed: as an activation instead of a parameter, or with two
dimensions that share one family of labels, as heads and their columns do.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from surgeon.graph import DependencyGraph, Group
from surgeon.labels.flow import Flow
from surgeon.modules import tensors_in
from surgeon.operate import operate
from surgeon.plan.describe import describe
from surgeon.verify.reference import Statistics, intercept, masked_state

# op name -> the tests that run it; filled while test modules are imported, read by test_coverage
COVERED: dict[str, list[str]] = {}

# A hunt for bugs draws more often: SURGEON_EFFORT=50 pytest tests/rules
EFFORT = int(os.environ.get("SURGEON_EFFORT", "1"))

# To explain which lines ran takes minutes where every line of the package does.
PHASES = tuple(phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain)

labels_run = importlib.import_module("surgeon.labels.run")
Function = Callable[..., Any]
Dress = Callable[["Square", Tensor], Tensor]


# -- the model ---------------------------------------------------------------------------------------


class Square(nn.Module):
    """One op: operands are parameters (buffers where they hold integers), size arguments are integer attributes."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.dressing: dict[str, Dress] = {}
        self.notes: list[str] = []

    def extra_repr(self) -> str:
        return ", ".join(self.notes)

    def add(self, name: str, value: Any) -> None:
        self.notes.append(f"{name} {list(value.shape)}" if isinstance(value, Tensor) else f"{name}={value}")
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            value = nn.Parameter(value)
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            self.register_buffer(name, value)
        else:
            setattr(self, name, value)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(Dressed(self), *inputs)


class Dressed:
    """What a case's function sees: the model's attributes, operands as they are dressed."""

    def __init__(self, model: Square) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        value, dress = getattr(self._model, name), self._model.dressing.get(name)
        return value if dress is None else dress(self._model, value)


def _activation(model: Square, value: Tensor) -> Tensor:
    return value.clone()


def dressed(draw: Any, model: Square, name: str, value: Tensor) -> None:
    """Add an operand as a parameter, an activation, or an activation with a family over two dimensions."""
    joint = value.dim() > 1 and value.is_floating_point()
    how = draw(
        st.sampled_from(("parameter", "activation", "joint", "folded") if joint else ("parameter", "activation"))
    )
    if how in ("parameter", "activation"):
        model.add(name, value)
        if how == "activation":
            model.dressing[name] = _activation
            model.notes[-1] += " activation"
        return
    order = draw(st.permutations(range(value.dim()))) if draw(st.booleans()) else list(range(value.dim()))
    at = draw(st.integers(0, value.dim() - 2))
    back = np.argsort(order).tolist()
    stored = value.permute(*order).contiguous()
    model.add(f"{name}_rows", stored.shape[at])
    model.add(f"{name}_columns", stored.shape[at + 1])
    model.add(name, stored.flatten(at, at + 1) if how == "joint" else stored)
    model.notes[-1] += f" {how} at {at}, then permuted {back}"

    def dress(module: Square, tensor: Tensor) -> Tensor:
        if how == "folded":
            tensor = tensor.flatten(at, at + 1)
        sizes = (getattr(module, f"{name}_rows"), getattr(module, f"{name}_columns"))
        tensor = tensor.unflatten(at, sizes)
        return tensor if back == sorted(back) else tensor.permute(*back)

    model.dressing[name] = dress


# -- one trial ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class Trial:
    """A recorded op: its graph, and the labels of its results."""

    model: Square
    inputs: tuple[Tensor, ...]
    flow: Flow
    graph: DependencyGraph
    outputs: list[Tensor]

    @property
    def ops(self) -> set[str]:
        return {op.name for op in self.flow.ops}

    def survivors(self, output: Tensor, alive: np.ndarray) -> Tensor:
        """Return which positions of a result survive."""
        keep = torch.ones(output.shape, dtype=torch.bool)
        for family in self.flow.value(output).families:
            keep = keep & torch.from_numpy(alive[self.graph.solution.class_of[family.labels.numpy()]])
        return keep

    def group_of(self, place: str) -> Group | None:
        """Return the group that holds a dimension of an operand, ``"w:0"``."""
        name, _, dim = place.partition(":")
        wanted = (name, (int(dim),))
        return next((g for g in self.graph.groups if any((m.parameter, m.dims) == wanted for m in g.members)), None)


class Untaken(Flow):
    """Leaves the model's outputs free to shrink, and keeps them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.given_out: list[Any] = []

    def take(self, tree: Any) -> None:
        self.given_out.append(tree)
        with mock.patch("surgeon.labels.flow.pin_value"):
            super().take(tree)


def recorded(model: Square, inputs: tuple[Tensor, ...]) -> Trial:
    """Record an op as a model is recorded, but leave its results free to shrink."""
    with mock.patch.object(labels_run, "Flow", Untaken):
        run = labels_run.run(model, inputs)
    graph = DependencyGraph(model, run)
    return Trial(model, inputs, run.flow, graph, list(tensors_in(run.flow.given_out[0])))


def removal(draw: Any, graph: DependencyGraph) -> np.ndarray:
    """Draw the units that go: some steps of each free group, in each row the units of that row's own lowest scores."""
    outer, inner = graph.nesting()
    skipped = draw(st.sampled_from((outer, inner))) if inner else set()
    groups = [g for g in graph.free if g.name not in skipped]
    if not groups:
        return np.zeros(0, np.int64)
    sure = draw(st.integers(0, len(groups) - 1))
    scores = np.random.default_rng(draw(st.integers(0, 99)))
    units = []
    for i, group in enumerate(groups):
        steps = draw(st.integers(1 if i == sure else 0, group.size - group.least))
        for row in group.grid:
            units.append(scores.permutation(row)[: steps * len(row) // group.size])
    return np.concatenate(units)


def rectangle(keep: Tensor) -> tuple[int, ...]:
    """Return the shape that survivors leave; every surviving row has to keep equally many, at every depth."""
    if not keep.dim():
        return ()
    rows = {rectangle(row) for row in keep if row.any()}
    assert len(rows) <= 1, f"rows keep different shapes {sorted(rows)}:\n{keep.int()}"
    count = sum(bool(row.any()) for row in keep)
    return (count, *(rows.pop() if rows else (0,) * (keep.dim() - 1)))


def commutes(trial: Trial, units: np.ndarray, values: bool) -> None:
    """Cut, run both ways, compare."""
    graph, model = trial.graph, trial.model
    plan = describe(graph, units, {}, {})
    small = operate(model, plan)
    alive = ~graph.dead_classes(units)
    state = {name: tensor.clone() for name, tensor in masked_state(model.state_dict(), plan).items()}
    with torch.no_grad():
        with intercept(Statistics(plan)):
            expected = list(tensors_in(functional_call(model, state, trial.inputs)))
        found = list(tensors_in(small(*trial.inputs)))
    assert len(found) == len(expected) == len(trial.outputs)
    for i, (output, whole, cut) in enumerate(zip(trial.outputs, expected, found)):
        if not output.numel():
            assert not cut.numel()
            continue
        keep = trial.survivors(output, alive)
        shape = rectangle(keep)
        assert tuple(cut.shape) == shape, f"result {i} is {list(cut.shape)}, its labels say {list(shape)}"
        if values:
            torch.testing.assert_close(cut, whole[keep].reshape(shape), rtol=1e-9, atol=1e-9, equal_nan=True)


# -- cases -------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Outcome:
    """What the draws of one test have seen between them."""

    ops: set[str] = field(default_factory=set)
    cut: int = 0


class Case:
    """One draw of a test: shapes and arguments are drawn from it, and the square is checked with it."""

    def __init__(self, data: st.DataObject, outcome: Outcome) -> None:
        self.draw: Any = data.draw
        self.outcome = outcome
        torch.manual_seed(0)

    def size(self, low: int = 1, high: int = 5) -> int:
        return int(self.draw(st.integers(low, high)))

    def shape(self, rank: int, low: int = 1, high: int = 5) -> tuple[int, ...]:
        return tuple(self.size(low, high) for _ in range(rank))

    def of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def dim(self, rank: int) -> int:
        """Draw a dimension, counted from the front or from the back."""
        return int(self.draw(st.integers(-rank, rank - 1)))

    def flip(self) -> bool:
        return bool(self.draw(st.booleans()))

    def tensor(self, *shape: int) -> Tensor:
        """Return numbers between 0.1 and 0.9, where nearly every function has a value."""
        return torch.rand(shape, dtype=torch.float64) * 0.8 + 0.1

    def signed(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64)

    def check(
        self,
        function: Function,
        *,
        inputs: Sequence[Tensor] = (),
        cut: str = "",
        stays: Mapping[str, str] | None = None,
        dress: bool | Iterable[str] = True,
        values: bool = True,
        **operands: Any,
    ) -> None:
        """Check one square.

        Parameters
        ----------
        function : the op, called on the namespace of operands and on the inputs
        inputs : tensors that can't be cut
        cut : dimensions of operands that have to be free, ``"x:0 w:1"``, where they are longer than one
        stays : dimensions that have to be pinned, and the op or the words that the reason names
        dress : which operands may come dressed
        values : compare values; without, shapes alone (random ops)
        operands : tensors, and integers for size arguments
        """
        model = Square(function)
        for name, value in operands.items():
            wears = isinstance(value, Tensor) and (dress is True or (dress is not False and name in dress))
            if wears:
                dressed(self.draw, model, name, value)
            else:
                model.add(name, value)
        hypothesis.note(f"operands {model}, inputs {[list(t.shape) for t in inputs]}")
        trial = recorded(model, tuple(inputs))
        self.outcome.ops |= trial.ops
        if all(dress in (None, _activation) for dress in map(model.dressing.get, operands)):
            self._expect(trial, cut.split(), stays or {})
        units = removal(self.draw, trial.graph)
        hypothesis.note("\n".join(map(str, trial.graph.groups)) + f"\nunits {units.tolist()} go")
        self.outcome.cut += len(units)
        if len(units):
            commutes(trial, units, values)

    def _expect(self, trial: Trial, cut: Sequence[str], stays: Mapping[str, str]) -> None:
        shapes = {name: value.shape for name, value in trial.flow.leaves.items()}
        long = [p for p in (*cut, *stays) if shapes[p.partition(":")[0]][int(p.partition(":")[2])] > 1]
        for place in long:
            group = trial.group_of(place)
            if place in cut:
                assert group is not None, f"no group holds {place}"
                assert group.pinned is None, f"{place} is pinned: {trial.graph.reason(group)}"
            if place in cut or group is None:  # a parameter that is solid from the start has no labels
                continue
            assert group.pinned is not None, f"{place} may be cut: {group}"
            at = [op.name for op in trial.flow.ops if op.index == group.pinned.at]
            assert stays[place] in (*at, "") or stays[place] in group.pinned.text, trial.graph.reason(group)


def square(
    *ops: str, must_cut: bool = True, examples: int = 12
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a test of draws of a case.

    After all draws, each of ``ops`` must have been called (of a parametrised test: the op that is the parameter), and
    something must have been cut, or nothing at all with ``must_cut=False``.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        for op in ops:
            COVERED.setdefault(op, []).append(test.__qualname__)

        @functools.wraps(test)
        def run(**parameters: Any) -> None:
            outcome = Outcome()

            @hypothesis.settings(max_examples=examples * EFFORT, report_multiple_bugs=False, phases=PHASES)
            @hypothesis.given(case=st.data())
            @functools.wraps(test)
            def draws(case: Any, **given: Any) -> None:
                test(Case(case, outcome), **given)

            draws(**parameters)
            wanted = set(ops) & {v for v in parameters.values() if isinstance(v, str)} if parameters else set(ops)
            assert wanted <= outcome.ops, f"never called: {sorted(wanted - outcome.ops)}; called {sorted(outcome.ops)}"
            assert bool(outcome.cut) == must_cut, "nothing was ever cut" if must_cut else "something could be cut"

        signature = inspect.signature(test)
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[p for name, p in signature.parameters.items() if name != "case"]
        )
        return run

    return decorate
