"""What a layer should make: its own result in the original, or the sum that its result goes into."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from surgeon.calibrate import Contraction, Layer, Leaf, Slot, Step, Tape, contractions, examined


@dataclass(frozen=True, eq=False)
class Goal:
    """Where the result of a call is compared with the original's.

    call    the contraction
    until   the call whose result is compared: the contraction itself, its batch norm, or the sum behind it
    norm    the batch norm in between
    others  what else goes into the sums on the way: the call that adds it, and what it adds
    path    the calls from the contraction up to, not including, ``until``
    """

    call: Contraction
    until: int
    norm: int | None = None
    others: tuple[tuple[int, Slot], ...] = ()
    path: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.call} against the result of call {self.until}"


@dataclass(frozen=True, eq=False)
class Target:
    """A layer and the goals of its calls.

    norm  the batch norm behind all of them
    relu  nothing but a ReLU reads the results
    at    how far the models have to be when its turn comes: for a layer of several calls, before the first
    """

    layer: Layer
    goals: tuple[Goal, ...]
    norm: Step | None
    relu: bool
    at: int

    def __str__(self) -> str:
        return f"{self.layer}, {', '.join(map(str, self.goals))}"


def targets(tape: Tape, cut: Collection[str], bare: Collection[int] = ()) -> tuple[list[Target], list[tuple[str, str]]]:
    """Return, in the order in which they can be met, the layers of a small model that see something else than before.

    Beside them, name and reason of those that have to be left. ``cut`` names the tensors that have shrunk, ``bare`` the
    calls that are compared right where they are. Of several layers that go into one sum, the one with most inputs to a
    filter answers for the sum and the others for themselves.
    """
    changed = _changed(tape, cut)
    seen = [(layer, why) for layer, why in examined(tape) if any(call.x in changed for call in layer.calls)]
    found = [_target(tape, layer, layer.first.at in bare) for layer, why in seen if not why]
    sums: dict[int, Target] = {}
    for target in found:
        until = target.goals[-1].until
        if target.goals[0].others and _fan_in(tape, target) > _fan_in(tape, sums.get(until)):
            sums[until] = target
    answers = {id(target) for target in sums.values()}
    chosen = [t if not t.goals[0].others or id(t) in answers else _target(tape, t.layer, alone=True) for t in found]
    left = [(layer.name.removesuffix(".weight"), why) for layer, why in seen if why] + list(_computed(tape, changed))
    return sorted((t for t in chosen if _counts(tape, t)), key=lambda t: t.at), left


def _fan_in(tape: Tape, target: Target | None) -> int:
    return target.layer.first.matrix(tape.leaves).shape[2] if target else 0


def _changed(tape: Tape, cut: Collection[str]) -> set[Slot]:
    changed: set[Slot] = set()
    for step in tape.steps:
        if any(leaf.name in cut for leaf in step.leaves) or any(slot in changed for slot in step.inputs):
            changed.update(step.written)
    return changed


def _computed(tape: Tape, changed: Collection[Slot]) -> Iterable[tuple[str, str]]:
    """Yield name and reason of linear and convolutional calls that are no contractions with weights of their own."""
    known = {call.at for call in contractions(tape)}
    for at, step in enumerate(tape.steps):
        if step.name.startswith(("linear", "conv")) and at not in known and step.argument(0, "input") in changed:
            yield f"{step.name} of call {at}", "its weight or bias is computed on the way, or it is given no batch"


def _counts(tape: Tape, target: Target) -> bool:
    """Tell whether anything reads the results at all."""
    for goal in target.goals:
        made = tape.steps[goal.until].outputs
        if any(slot in tape.output for slot in made) or any(slot in s.inputs for s in tape.steps for slot in made):
            return True
    return False


def _target(tape: Tape, layer: Layer, bare: bool = False, alone: bool = False) -> Target:
    """Return where a layer is compared; one of several calls at each of them, behind a norm that they all share."""
    several = len(layer.calls) > 1
    goals = [_bare(call) if bare else _goal(tape, call, alone or several) for call in layer.calls]
    norms = [None if goal.norm is None else tape.steps[goal.norm] for goal in goals]
    if several and len({None if n is None else n.argument(3, "running_mean") for n in norms}) > 1:
        goals, norms = [_bare(call) for call in layer.calls], [None]
    relu = not bare and all(_rectified(tape, goal) for goal in goals)
    first = min(at for call in layer.calls for at in (call.at, *call.weight.through))
    goals.sort(key=lambda goal: goal.until)
    return Target(layer, tuple(goals), norms[0], relu, first if several else goals[0].until)


def _bare(call: Contraction) -> Goal:
    return Goal(call, call.at)


def _rectified(tape: Tape, goal: Goal) -> bool:
    made = tape.steps[goal.until].outputs[0]
    last = _only_reader(tape, made, goal.until)
    return last is not None and tape.steps[last].name == "relu"


def _goal(tape: Tape, call: Contraction, alone: bool) -> Goal:
    """Follow a result through its batch norm and the sums that nothing else reads on the way."""
    until, slot, norm = call.at, call.y, None
    others: list[tuple[int, Slot]] = []
    path: list[int] = []
    while (reader := _only_reader(tape, slot, until)) is not None:
        step = tape.steps[reader]
        if step.name == "batch_norm" and norm is None and not others and frozen(step, slot):
            norm = reader
        elif step.name == "add" and not alone and (other := _other(tape, step, slot)) is not None:
            others.append((reader, other))
        elif not _same(step, slot):
            break
        path.append(until)
        until, slot = reader, step.outputs[0]
        if any(slot == other for _, other in others):  # written over in place, so it can be done once only
            break
    return Goal(call, until, norm, tuple(others), tuple(path))


def _same(step: Step, slot: Slot) -> bool:
    """Tell whether a call gives back what it gets: dropout in eval mode."""
    dropped = step.name in DROPOUT and not step.argument(2, "train", True)
    return (dropped or step.name in ("contiguous", "identity")) and step.argument(0, "input") == slot


DROPOUT = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})


def _only_reader(tape: Tape, slot: Slot, after: int) -> int | None:
    """Return the one call that reads a value before it is overwritten."""
    readers = []
    for at in range(after + 1, len(tape.steps)):
        step = tape.steps[at]
        if slot in step.inputs:
            readers.append(at)
        if slot in step.written:
            break
    else:
        if slot in tape.output:
            return None
    return readers[0] if len(readers) == 1 else None


def frozen(step: Step, slot: Slot) -> bool:
    """Tell whether a batch norm normalises with statistics that it holds."""
    statistics = step.argument(3, "running_mean"), step.argument(4, "running_var")
    scales = step.argument(1, "weight"), step.argument(2, "bias")
    given = step.argument(0, "input") == slot and not step.argument(5, "training", False)
    held = all(isinstance(s, Leaf) for s in statistics) and all(s is None or isinstance(s, Leaf) for s in scales)
    return given and held


def _other(tape: Tape, step: Step, slot: Slot) -> Slot | None:
    """Return the other operand of a plain sum of two tensors of one shape."""
    operands = [step.argument(0, "input"), step.argument(1, "other")]
    others = [o for o in operands if o != slot]
    plain = len(step.args) <= 2 and set(step.kwargs) <= {"input", "other"}
    if not plain or len(others) != 1 or not isinstance(others[0], Slot):
        return None
    return others[0] if tape.shapes[others[0]] == tape.shapes[slot] else None


def reads(tape: Tape, leaf: object) -> Sequence[int]:
    """Return the calls that take a parameter or buffer."""
    return [at for at, step in enumerate(tape.steps) if leaf in step.leaves]
