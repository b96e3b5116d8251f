"""Which bytes of which output file hold which tensor, before any is written."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.errors import BudgetError, PlanMismatch
from surgeon.files.header import DTYPES, Header, Stored, header_bytes
from surgeon.files.names import prefix_hint
from surgeon.plan.plan import Plan

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


@dataclass(frozen=True)
class Target:
    """A tensor on its way: where it is now, its name in the plan, and where it will be.

    known  the name that the plan knows it by, which is another one for tied tensors
    begin  offset in the output file
    """

    stored: Stored
    known: str
    shape: tuple[int, ...]
    shard: int
    begin: int

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return math.prod(self.shape) * DTYPES[self.stored.dtype].itemsize


@dataclass(frozen=True)
class Shard:
    """An output file: its name, its header, its length, and its tensors in the order in which they are read."""

    name: str
    header: bytes
    size: int
    targets: tuple[Target, ...]


def shards(plan: Plan, headers: Sequence[Header], shard_size: int) -> list[Shard]:
    """Lay the survivors of a checkpoint out in files of at most ``shard_size`` bytes, or of one tensor.

    Raises
    ------
    PlanMismatch where the checkpoint is not one of the plan's architecture.
    """
    stored = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    known = names_in_plan(plan, stored)
    piles: list[list[tuple[Stored, tuple[int, ...]]]] = []
    room = 0
    for name, tensor in stored.items():
        shape = _new_shape(plan, known[name], tensor)
        size = math.prod(shape) * DTYPES[tensor.dtype].itemsize
        if not piles or (size > room and piles[-1]):
            piles.append([])
            room = shard_size
        piles[-1].append((tensor, shape))
        room -= size
    return [_shard(k, len(piles), pile, known) for k, pile in enumerate(piles)]


def _shard(k: int, of: int, pile: Sequence[tuple[Stored, tuple[int, ...]]], known: Mapping[str, str]) -> Shard:
    # Wide types come first, so that every tensor begins at a multiple of its item size; each is read when it comes up.
    order = sorted(pile, key=lambda item: -DTYPES[item[0].dtype].itemsize)
    header = header_bytes({t.name: (t.dtype, shape) for t, shape in order}, {"format": "pt"})
    begins, at = {}, len(header)
    for tensor, shape in order:
        begins[tensor.name] = at
        at += math.prod(shape) * DTYPES[tensor.dtype].itemsize
    targets = tuple(Target(t, known[t.name], shape, k, begins[t.name]) for t, shape in pile)
    return Shard(f"model-{k + 1:05}-of-{of:05}.safetensors", header, at, targets)


def names_in_plan(plan: Plan, stored: Iterable[str]) -> dict[str, str]:
    """Return the name that the plan knows each tensor of a checkpoint by.

    Raises
    ------
    PlanMismatch for a tensor that the plan does not know, or one that is missing.
    """
    found = {name: plan.tied.get(name, name) for name in stored}
    for name, known in found.items():
        if known not in plan.fingerprint:
            raise PlanMismatch(
                f"the plan does not know {name!r:.80}, which is in the files"
                f"{prefix_hint(found, plan.fingerprint) or '; is it a checkpoint of another architecture?'}"
            )
    for name in plan.fingerprint.keys() - {*found.values()} - {*plan.transient}:
        raise PlanMismatch(
            f"the files have no tensor {name!r:.80}{prefix_hint(found, plan.fingerprint) or '; are all of them given?'}"
        )
    return found


def _new_shape(plan: Plan, known: str, stored: Stored) -> tuple[int, ...]:
    if stored.shape != plan.fingerprint[known]:
        raise PlanMismatch(
            f"the plan is for another architecture: {stored.name} is {list(stored.shape)} in {stored.path.name}, "
            f"{list(plan.fingerprint[known])} in the plan"
        )
    return plan.cuts[known].new_shape if known in plan.cuts else stored.shape


def parse_size(size: int | str) -> int:
    """Read a number of bytes: ``2_000_000_000``, ``"2GB"``, ``"500 MiB"``.

    Raises
    ------
    BudgetError
    """
    read = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?I?)B?\s*", str(size).upper())
    number = float(read[1]) * UNITS[read[2]] if read and read[2] in UNITS else 0
    if isinstance(size, (bool, float)) or number < 1:
        raise BudgetError(f"shard_size={size!r} is a number of bytes, such as 2_000_000_000 or '2GB'")
    return int(number)


def run_digest(plan: Plan, headers: Iterable[Header], shard_size: int) -> str:
    """Return what tells one cut from another: the plan, the files as they are now, and how they are divided."""
    digest = hashlib.sha256(plan.to_json(compact=True).encode())
    for header in headers:
        state = header.path.stat()
        facts: Any = (header.path.name, state.st_size, state.st_mtime_ns, hashlib.sha256(header.text).hexdigest())
        digest.update(repr(facts).encode())
    digest.update(repr(shard_size).encode())
    return digest.hexdigest()
