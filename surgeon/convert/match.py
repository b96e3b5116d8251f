"""Find where the values of a smaller tensor come from in a larger one, over all tensors of a model at once.

Positions along dimensions belong to classes that live or die together. A slice of the small tensor that equals one
slice of the large one, and no other, says that the classes there live; a slice of the large tensor that the small one
has no copy of says that its class is dead. What one tensor tells narrows what the others may mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor

UNKNOWN, ALIVE, DEAD = 0, 1, -1

# Kinds of equal slices that are told apart by their order, which takes a look at all slices for each.
FEW = 64


@dataclass(frozen=True, eq=False)
class Axis:
    """Dimensions of a tensor that may shrink, and the classes of the positions along them, flattened."""

    name: str
    dims: tuple[int, ...]
    classes: np.ndarray

    def __str__(self) -> str:
        return f"{self.name} dim {', '.join(map(str, self.dims))}"


@dataclass(eq=False)
class Matching:
    """What is known of every class so far.

    state    [classes] unknown, alive or dead
    changed  tensors whose values are not those of the original
    scaled   tensors of which some positions may have been multiplied: only what is found in them tells something
    """

    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    axes: Mapping[str, Sequence[Axis]]
    state: np.ndarray
    changed: set[str] = field(default_factory=set)
    scaled: frozenset[str] = frozenset()

    def __str__(self) -> str:
        alive, dead = int((self.state == ALIVE).sum()), int((self.state == DEAD).sum())
        return f"{alive} classes alive, {dead} dead, {len(self.state) - alive - dead} unknown"

    def solve(self, infer: Callable[[np.ndarray], None]) -> None:
        """Narrow until nothing changes; ``infer`` draws conclusions from what is known, in place.

        Tensors with few slices to compare come first; those where several axes are open are compared position by
        position, and only when nothing else helps.
        """
        self._count_all()
        infer(self.state)
        names = sorted((n for n in self.axes if n in self.after), key=lambda n: self.before[n].numel())
        known: dict[str, bytes] = {}
        for crowded in (False, True):
            settled = False
            while not settled:
                before = self.state.copy()
                for name in names:
                    here = b"".join(self.state[axis.classes].tobytes() for axis in self.axes[name])
                    many = len(self._open(name))
                    if not many or (many > 1 and not crowded) or known.get(name) == here:
                        continue
                    known[name] = here
                    last = self.state.copy()
                    self._match(name)
                    if not np.array_equal(last, self.state):
                        infer(self.state)
                        self._count_all()
                        infer(self.state)
                settled = bool((before == self.state).all())

    # -- counting ------------------------------------------------------------------------------------

    def _count_all(self) -> None:
        for name, axes in self.axes.items():
            for axis in axes:
                self._count(name, axis, axes)

    def _count(self, name: str, axis: Axis, axes: Sequence[Axis]) -> None:
        """Where as many live as have to, the others are dead; where no more are left than have to live, they live."""
        if any(other is not axis and set(other.dims) & set(axis.dims) for other in axes):
            return
        needed = prod(self.after[name].shape[d] for d in axis.dims)
        state = self.state[axis.classes]
        open_ = axis.classes[state == UNKNOWN]
        if not len(open_):
            return
        if (state == ALIVE).sum() == needed:
            self.state[open_] = DEAD
        elif (state != DEAD).sum() == needed:
            self.state[open_] = ALIVE

    # -- comparing -----------------------------------------------------------------------------------

    def _open(self, name: str) -> list[Axis]:
        return [axis for axis in self.axes[name] if (self.state[axis.classes] == UNKNOWN).any()]

    def _match(self, name: str) -> None:
        """Compare slices of a tensor along the dimensions of its open axes."""
        old, new, axes = self.before[name], self.after[name], self.axes[name]
        if name in self.changed:
            return
        dims = _joined({d for axis in self._open(name) for d in axis.dims}, axes)
        rest = [d for d in range(old.dim()) if d not in dims]
        classes = [_spread(axis, dims, old.shape) for axis in axes if set(axis.dims) <= set(dims)]
        possible = np.logical_and.reduce([self.state[c] != DEAD for c in classes])
        columns = np.ones(prod(old.shape[d] for d in rest), bool)
        for axis in axes:
            if not set(axis.dims) & set(dims):
                columns &= self.state[_spread(axis, rest, old.shape)] == ALIVE
        rows = _rows(old, dims, rest)[possible][:, columns]
        wanted = _rows(new, dims, rest)
        if rows.shape[1] != wanted.shape[1]:
            self.changed.add(name)
            return
        kinds, of_old, of_new = _kinds(rows, wanted)
        here, there = np.bincount(of_old, minlength=kinds), np.bincount(of_new, minlength=kinds)
        if (there > here).any() and name not in self.scaled:
            self.changed.add(name)
            return
        at = np.flatnonzero(possible)
        lives, dies = (here == there)[of_old], (there == 0)[of_old]
        unclear = np.flatnonzero((there > 0) & (there < here))
        for kind in unclear.tolist() if len(unclear) <= FEW and name not in self.scaled else ():
            _by_order(kind, of_old, of_new, here, there, lives, dies)
        self._settle(classes, at[lives], at[dies] if name not in self.scaled else at[:0])

    def _settle(self, classes: Sequence[np.ndarray], alive: np.ndarray, dead: np.ndarray) -> None:
        """Take down which positions live and which don't; one of several classes at a dead position is to blame."""
        for axis in classes:
            self.state[axis[alive]] = ALIVE
        if not len(dead):
            return
        here = np.stack([axis[dead] for axis in classes])
        unknown = self.state[here] == UNKNOWN
        first = here[unknown.argmax(axis=0), np.arange(len(dead))]
        single = (
            unknown.any(axis=0) & ((here == first) | ~unknown).all(axis=0) & ~(self.state[here] == DEAD).any(axis=0)
        )
        self.state[first[single]] = DEAD


def _by_order(
    kind: int,
    of_old: np.ndarray,
    of_new: np.ndarray,
    here: np.ndarray,
    there: np.ndarray,
    lives: np.ndarray,
    dies: np.ndarray,
) -> None:
    """Tell equal rows apart by their place between others that are known, since a cut keeps the order; in place."""
    single = (here == 1) & (there == 1)
    known = np.flatnonzero(single[of_old])
    home = np.full(len(here), -1)
    home[of_old[known]] = known
    found = np.where(single[of_new], home[of_new], -1)
    after = np.maximum.accumulate(found)
    later = np.where(found < 0, len(of_old), found)
    before = np.minimum.accumulate(later[::-1])[::-1]
    rows, wanted = np.flatnonzero(of_old == kind), np.flatnonzero(of_new == kind)
    windows, many = np.unique(np.stack([after[wanted], before[wanted]]), axis=1, return_counts=True)
    inside = (rows[:, None] > windows[0]) & (rows[:, None] < windows[1])
    dies[rows[~inside.any(axis=1)]] = True
    full = inside.sum(axis=0) == many
    lives[rows[inside[:, full].any(axis=1)]] = True


def _joined(dims: set[int], axes: Sequence[Axis]) -> list[int]:
    """Return dimensions, with those that some axis joins to them."""
    while more := {d for axis in axes if set(axis.dims) & dims for d in axis.dims} - dims:
        dims = dims | more
    return sorted(dims)


def _spread(axis: Axis, dims: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Return an axis' classes at every position along more dimensions, flattened."""
    own = [shape[d] if d in axis.dims else 1 for d in dims]
    return np.broadcast_to(axis.classes.reshape(own), [shape[d] for d in dims]).reshape(-1)


def bits(tensor: Tensor) -> Tensor:
    """Return a tensor's memory as integers: what is equal to the last bit is equal here, NaN included."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    tensor = tensor.detach().cpu().contiguous()
    if tensor.element_size() == 16:
        return torch.view_as_real(tensor).view(torch.int64)
    return tensor.view(kinds[tensor.element_size()])


def _rows(tensor: Tensor, dims: Sequence[int], rest: Sequence[int]) -> np.ndarray:
    moved = bits(tensor)
    extra = list(range(len(dims) + len(rest), moved.dim()))
    rows: np.ndarray = moved.permute(*dims, *rest, *extra).contiguous().numpy()
    return rows.reshape(prod(tensor.shape[d] for d in dims), prod(tensor.shape[d] for d in rest), -1)


def _kinds(rows: np.ndarray, wanted: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Number equal rows alike: how many kinds there are, and which each row of the two is."""
    both = np.ascontiguousarray(np.concatenate([rows, wanted]).reshape(len(rows) + len(wanted), -1))
    if not both.shape[1]:
        both = np.zeros((len(both), 1), np.uint8)
    single = both[:, 0] if both.shape[1] == 1 else both.view(np.dtype((np.void, both.itemsize * both.shape[1]))).ravel()
    kinds, which = np.unique(single, return_inverse=True)
    return len(kinds), which[: len(rows)], which[len(rows) :]
