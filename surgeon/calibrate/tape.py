"""A forward pass on a tape: recorded once per batch, and played call by call.

Several batches, and the original beside the small model, can so be moved forward in step: what a layer is given is
there for all batches at once when that layer's turn comes, and no more activations are held than the pass needs there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from surgeon.aten import is_inplace
from surgeon.calibrate.batches import fitting
from surgeon.dispatch import ASIDES, SIZE_QUERIES, intercept, op_name
from surgeon.modules import as_arguments, evaluating, tensors_in, untouched


@dataclass(frozen=True)
class Slot:
    """A tensor that the pass makes, or is given."""

    number: int

    def __str__(self) -> str:
        return f"%{self.number}"


@dataclass(frozen=True)
class Leaf:
    """A parameter or buffer."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Step:
    """One call: arguments are trees whose tensors are slots and leaves; results are the tensors that came back."""

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Slot | Leaf, ...]

    @property
    def inputs(self) -> tuple[Slot, ...]:
        return tuple(found(Slot, (self.args, self.kwargs)))

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        return tuple(found(Leaf, (self.args, self.kwargs)))

    @property
    def outputs(self) -> tuple[Slot, ...]:
        return tuple(found(Slot, self.results))

    @property
    def written(self) -> tuple[Slot, ...]:
        """What the call makes or writes into."""
        return tuple(dict.fromkeys((*self.outputs, *found(Slot, into(self)))))

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.outputs))} = {self.name}({', '.join(map(str, self.inputs))})"


@dataclass(eq=False)
class Tape:
    """A recorded forward pass.

    steps   the calls, in order
    given   the slots that held tensors before the first call
    output  where the tensors that the pass returned come from
    leaves  parameters and buffers by name
    shapes  of slots
    """

    steps: list[Step]
    given: dict[Slot, Tensor]
    output: tuple[Any, ...]
    leaves: dict[str, Tensor]
    shapes: dict[Slot, torch.Size]

    def __str__(self) -> str:
        return f"Tape({len(self.steps)} calls)"


def found(kind: type, tree: Any) -> Iterator[Any]:
    """Yield what is of a kind inside nested tuples, lists and dicts."""
    if isinstance(tree, kind):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from found(kind, item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from found(kind, item)


def replaced(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Return a tree of dicts, lists and tuples with everything else changed."""
    if isinstance(tree, dict):
        return {key: replaced(item, change) for key, item in tree.items()}
    if isinstance(tree, list):
        return [replaced(item, change) for item in tree]
    if isinstance(tree, tuple) and not hasattr(tree, "_fields"):
        return tuple(replaced(item, change) for item in tree)
    return change(tree)


class _Recorder:
    def __init__(self, model: nn.Module) -> None:
        self.leaves: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.names = {id(tensor): name for name, tensor in self.leaves.items()}
        self.slots = WeakIdKeyDictionary()
        self.given: dict[Slot, Tensor] = {}
        self.shapes: dict[Slot, torch.Size] = {}
        self.steps: list[Step] = []
        self.count = 0

    def new(self, tensor: Tensor) -> Slot:
        slot = self.slots[tensor] = Slot(self.count)
        self.shapes[slot] = tensor.shape
        self.count += 1
        return slot

    def source(self, value: Any) -> Any:
        """Return where an argument comes from."""
        if not isinstance(value, Tensor):
            return value
        if id(value) in self.names:
            return Leaf(self.names[id(value)])
        if value in self.slots:
            return self.slots[value]
        slot = self.new(value)
        self.given[slot] = value
        return slot

    def target(self, value: Tensor) -> Slot | Leaf:
        """Return where a result goes: in-place calls return what they were given."""
        if id(value) in self.names:
            return Leaf(self.names[id(value)])
        return self.slots[value] if value in self.slots else self.new(value)

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = op_name(func)
        if name in SIZE_QUERIES or name in ASIDES:
            return func(*args, **kwargs)
        before = replaced(args, self.source), replaced(kwargs, self.source)
        result = func(*args, **kwargs)
        self.steps.append(Step(name, func, *before, tuple(map(self.target, tensors_in(result)))))
        return result


def record(model: nn.Module, inputs: Any) -> Tape:
    """Run a model once in eval mode, without gradients, and return its calls."""
    args, kwargs = as_arguments(inputs)
    recorder = _Recorder(model)
    for tensor in tensors_in([args, kwargs]):
        recorder.source(tensor)
    with fitting(inputs), torch.no_grad(), untouched(model), evaluating(model), intercept(recorder):
        output = model(*args, **kwargs)
    kept = tuple(replaced(tensor, recorder.source) for tensor in tensors_in(output))
    return Tape(recorder.steps, recorder.given, kept, recorder.leaves, recorder.shapes)


class Player:
    """Plays a tape: the values that are still needed, and the call that comes next."""

    def __init__(self, tape: Tape, values: dict[Slot, Tensor] | None = None, at: int = 0) -> None:
        self.tape, self.at = tape, at
        self.values = dict(tape.given) if values is None else values
        # Counters, caches and the like that the pass writes to are the player's own.
        written = {leaf.name for step in tape.steps for leaf in found(Leaf, into(step))}
        self._own = {name: tape.leaves[name].detach().clone() for name in written}
        self.leaves: Mapping[str, Tensor] = {**tape.leaves, **self._own} if written else tape.leaves
        self._last = last_uses(tape)

    def value(self, source: Any) -> Any:
        """Return the tensor behind a slot or a leaf, and anything else as it is."""
        if isinstance(source, Slot):
            return self.values[source]
        return self.leaves[source.name] if isinstance(source, Leaf) else source

    def run(self, step: Step) -> None:
        """Run one call and put its result where it belongs."""
        result = step.func(*replaced(step.args, self.value), **replaced(step.kwargs, self.value))
        for slot, tensor in zip(step.results, tensors_in(result)):
            if isinstance(slot, Slot):
                self.values[slot] = tensor

    def advance(self, stop: int) -> None:
        """Run all calls before ``stop`` that have not been run; drop what no later call reads."""
        with torch.no_grad():
            while self.at < stop:
                self.run(self.tape.steps[self.at])
                for slot in self._last[self.at]:
                    self.values.pop(slot, None)
                self.at += 1

    def fork(self) -> Player:
        """Return a player that goes on from here and leaves this one alone, in-place calls included."""
        clean = not any(into(step) for step in self.tape.steps[self.at :])
        twin = Player.__new__(Player)
        twin.tape, twin.at, twin._last = self.tape, self.at, self._last
        twin._own = {name: value.clone() for name, value in self._own.items()}
        twin.leaves = {**self.leaves, **twin._own} if self._own else self.leaves
        # A common copy keeps views of one tensor views of one tensor.
        twin.values = dict(self.values) if clean else copy.deepcopy(self.values)
        return twin

    def finish(self) -> list[Tensor]:
        """Run to the end and return the tensors that the pass returned."""
        self.advance(len(self.tape.steps))
        return [self.value(source) for source in self.tape.output]


_SPECIAL = ("add", "sub", "mul", "div", "truediv", "pow", "and", "or", "xor")


def into(step: Step) -> tuple[Any, ...]:
    """Return the arguments that a call may write into."""
    name = getattr(step.func, "__name__", "")
    special = name.startswith("__i") and step.name in _SPECIAL
    first = special or is_inplace(step.func) or step.name == "setitem" or step.kwargs.get("inplace") is True
    out = step.kwargs.get("out")
    return (*step.args[: int(first)], *(() if out is None else (out,)))


def last_uses(tape: Tape) -> list[list[Slot]]:
    """Return, for every call, the slots that no later call reads."""
    seen = set(found(Slot, tape.output))
    last: list[list[Slot]] = [[] for _ in tape.steps]
    for at in reversed(range(len(tape.steps))):
        step = tape.steps[at]
        for slot in (*step.inputs, *step.outputs):
            if slot not in seen:
                seen.add(slot)
                last[at].append(slot)
    return last


def aligned(tapes: Sequence[Tape]) -> bool:
    """Tell whether tapes take the same calls in the same order, of the same values."""
    paths = ([(step.name, step.inputs, step.outputs) for step in tape.steps] for tape in tapes)
    first = next(paths)
    return all(other == first for other in paths)
