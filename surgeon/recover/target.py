"""What a layer should make: its own result in the original, or the sum that its result goes into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.calibrate import Contraction, Leaf, Slot, Step, Tape, layers
from surgeon.plan.plan import Plan


@dataclass(frozen=True, eq=False)
class Target:
    """Where the result of a contraction is compared with the original's.

    layer   the contraction
    until   the call whose result is compared: the contraction itself, its batch norm, or the sum behind it
    norm    the batch norm in between
    others  what else goes into the sum
    path    the calls from the contraction up to, not including, ``until``
    relu    nothing but a ReLU reads the result
    """

    layer: Contraction
    until: int
    norm: int | None = None
    others: tuple[Slot, ...] = ()
    path: tuple[int, ...] = ()
    relu: bool = False

    def __str__(self) -> str:
        return f"{self.layer} against the result of call {self.until}"


def targets(tape: Tape, cut: set[str]) -> Iterator[Target]:
    """Yield, in the order in which they can be met, the layers of a small model that see something else than before.

    ``cut`` names the tensors that have shrunk. Of several layers that go into one sum, the one with most inputs to a
    filter answers for the sum and the others for themselves.
    """
    changed = _changed(tape, cut)
    found = [_target(tape, layer) for layer in layers(tape) if layer.x in changed]
    sums: dict[int, Target] = {}
    for target in found:
        if target.others and _fan_in(tape, target) > _fan_in(tape, sums.get(target.until)):
            sums[target.until] = target
    chosen = [t if not t.others or sums[t.until] is t else _target(tape, t.layer, alone=True) for t in found]
    yield from sorted(chosen, key=lambda t: t.until)


def _fan_in(tape: Tape, target: Target | None) -> int:
    return tape.leaves[target.layer.weight][0].numel() if target else 0


def _changed(tape: Tape, cut: set[str]) -> set[Slot]:
    changed: set[Slot] = set()
    for step in tape.steps:
        if any(leaf.name in cut for leaf in step.leaves) or any(slot in changed for slot in step.inputs):
            changed.update(step.outputs)
    return changed


def _target(tape: Tape, layer: Contraction, alone: bool = False) -> Target:
    """Follow a result through its batch norm and the sums that nothing else reads on the way."""
    until, slot, norm = layer.at, layer.y, None
    others: list[Slot] = []
    path: list[int] = []
    while (reader := _only_reader(tape, slot, until)) is not None:
        step = tape.steps[reader]
        if step.name == "batch_norm" and norm is None and not others and frozen(step, slot):
            norm = reader
        elif step.name == "add" and not alone and (other := _other(step, slot)) is not None:
            others.append(other)
        elif not (step.name in _SAME and step.argument(0, "input") == slot):
            break
        path.append(until)
        until, written = reader, step.outputs[0]
        if written in others:  # written over in place, so it can be done once only
            slot = written
            break
        slot = written
    last = _only_reader(tape, slot, until)
    relu = last is not None and tape.steps[last].name == "relu"
    return Target(layer, until, norm, tuple(others), tuple(path), relu)


# Calls that give back what they get, in eval mode.
_SAME = frozenset({"dropout", "feature_dropout", "contiguous", "alpha_dropout"})


def _only_reader(tape: Tape, slot: Slot, after: int) -> int | None:
    """Return the one call that reads a value before it is overwritten."""
    readers = []
    for at in range(after + 1, len(tape.steps)):
        step = tape.steps[at]
        if slot in step.inputs:
            readers.append(at)
        if slot in step.outputs:
            break
    else:
        if slot in tape.output:
            return None
    return readers[0] if len(readers) == 1 else None


def frozen(step: Step, slot: Slot) -> bool:
    """Tell whether a batch norm normalises with statistics that it holds."""
    statistics = step.argument(3, "running_mean"), step.argument(4, "running_var")
    given = step.argument(0, "input") == slot and not step.argument(5, "training", False)
    return given and all(isinstance(s, Leaf) for s in statistics)


def _other(step: Step, slot: Slot) -> Slot | None:
    """Return the other operand of a plain sum of two tensors."""
    operands = [step.argument(0, "input"), step.argument(1, "other")]
    others = [o for o in operands if o != slot]
    plain = len(step.args) <= 2 and set(step.kwargs) <= {"input", "other"}
    return others[0] if plain and len(others) == 1 and isinstance(others[0], Slot) else None


def affine(step: Step | None, leaves: Mapping[str, Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Return factor and offset per channel ``[o]`` of a batch norm in eval mode, float64."""
    if step is None:
        return torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    mean, var = (leaves[step.argument(p, n).name].double() for p, n in ((3, "running_mean"), (4, "running_var")))
    weight, bias = (step.argument(p, n) for p, n in ((1, "weight"), (2, "bias")))
    factor = (var + step.argument(7, "eps", 1e-5)).rsqrt()
    factor = factor * leaves[weight.name].double() if isinstance(weight, Leaf) else factor
    offset = -mean * factor
    return factor, offset + leaves[bias.name].double() if isinstance(bias, Leaf) else offset


def norm_behind(tape: Tape, layer: Contraction) -> Step | None:
    """Return the batch norm that alone reads the result of a layer."""
    norm = _target(tape, layer, alone=True).norm
    return None if norm is None else tape.steps[norm]


def kept_outputs(plan: Plan, weight: str) -> Tensor | None:
    """Return which outputs of a layer stay; None for all."""
    cut = plan.cuts.get(weight)
    kept = [s.keep for s in cut.selections if s.dims == (0,)] if cut else []
    return torch.from_numpy(kept[0]) if kept else None


def lost_inputs(plan: Plan, layer: Contraction, weight: Tensor) -> Tensor | None:
    """Return which inputs of each group go, bool ``[groups, i]``; None where all stay."""
    cut = plan.cuts.get(layer.weight)
    selections = [s for s in cut.selections if 1 in s.dims] if cut else []
    if not selections:
        return None
    lost = torch.ones(selections[0].of, dtype=torch.bool)
    lost[torch.from_numpy(selections[0].keep)] = False
    return lost.view(layer.groups, -1, weight.shape[1])[:, 0]
