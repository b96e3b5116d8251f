"""When the tensors of a forward pass come and go: what is alive at once is the memory that it needs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from surgeon.labels.ops import Shape


@dataclass(eq=False)
class Allocation:
    """Memory of one storage: made by op ``born``, gone before op ``died``; None is for ever."""

    shape: Shape
    itemsize: int
    born: int
    died: int | None = None
    holders: int = 0

    def __str__(self) -> str:
        return f"{list(self.shape[0])} of {self.itemsize} bytes from op {self.born} to {self.died or 'the end'}"


class Lifetimes:
    """Watches tensors without keeping them; views are holders of the memory that they look into.

    Parameters
    ----------
    weights : tensors whose memory is the model's own, and not counted
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.allocations: list[Allocation] = []
        self.now = 0
        # Tensors without a storage of their own (sparse ones) go by None, as the model's: they are not counted.
        self._live: dict[int | None, Allocation | None] = {None: None, **dict.fromkeys(map(_storage, weights))}
        self._watched: dict[int, tuple[weakref.ref[Tensor], Allocation, int | None]] = {}
        self._stopped = False

    def give(self, tensor: Tensor) -> None:
        """Count a tensor that the caller holds all the time."""
        if _storage(tensor) not in self._live:
            self._live[_storage(tensor)] = allocation = _allocation(tensor, (tuple(tensor.shape), ()), -1)
            self.allocations.append(allocation)

    def made(self, tensor: Tensor, shape: Shape) -> None:
        """Count a result of the current op, unless it looks into memory that is counted already."""
        if self._stopped:
            return
        storage = _storage(tensor)
        if storage not in self._live:
            self._live[storage] = _allocation(tensor, shape, self.now)
            self.allocations.append(self._live[storage])  # type: ignore[arg-type]
        allocation = self._live[storage]
        if allocation is None or allocation.born < 0:
            return
        allocation.holders += 1
        watch = weakref.ref(tensor, self._gone)
        self._watched[id(watch)] = watch, allocation, storage

    def stop(self) -> None:
        """What is alive now stays."""
        self._stopped = True
        self._live.clear()
        self._watched.clear()

    def _gone(self, watch: weakref.ref[Tensor]) -> None:
        known = self._watched.pop(id(watch), None)
        if known is None:
            return
        _, allocation, storage = known
        allocation.holders -= 1
        if not allocation.holders:
            allocation.died = self.now
            del self._live[storage]


def _allocation(tensor: Tensor, shape: Shape, born: int) -> Allocation:
    return Allocation(shape, tensor.element_size(), born)


def _storage(tensor: Tensor) -> int | None:
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:
        return None
