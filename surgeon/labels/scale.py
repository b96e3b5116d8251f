"""Widths that an op divides by the root of: a parameter upstream can make up for it, so they may shrink.

``scaled_dot_product_attention(q, k, v)`` multiplies its logits by ``d ** -0.5``, where d is the width of q. When d
shrinks to d', the logits stay as they were if q is multiplied by ``(d' / d) ** 0.5``. Where q comes from one layer
through nothing but movements, and nothing else reads it, that factor goes into the layer's weights; otherwise d stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from surgeon.labels.family import Extent, Family, extent, fix_all
from surgeon.labels.flow import Flow, Op, Root

# Ops that only move values: a factor on their input is a factor on their result.
MOVES = frozenset(
    """
view reshape permute transpose swapaxes swapdims movedim moveaxis t T mT flatten unflatten squeeze unsqueeze chunk split
split_with_sizes tensor_split unbind getitem select narrow contiguous clone expand to type_as float half bfloat16 double
roll flip
""".split()
)
# Ops whose result is proportional to their parameters: rows of them to rows of the result, or all of them together.
LAYERS = frozenset("linear addmm conv1d conv2d conv3d".split())
NORMS = frozenset("layer_norm rms_norm".split())


@dataclass(frozen=True, eq=False)
class Rescaling:
    """Positions of parameters that are multiplied by ``(new width / old width) ** power`` after a cut.

    places : parameter, dimension, positions along it
    """

    places: tuple[tuple[str, int, np.ndarray], ...]
    width: Extent
    power: float

    def __str__(self) -> str:
        names = ", ".join(name for name, _, _ in self.places)
        return f"{names} times (width / {self.width}) ** {self.power}"


def rescalings(flow: Flow, recorded: int) -> list[Rescaling]:
    """Return what can be made up for, and pin the widths of all other roots.

    Parameters
    ----------
    recorded : number of ops of the main pass; those after it ran once more for their auxiliary branches
    """
    roots = [root for root in flow.roots if isinstance(_width(root), Extent)]
    labels = [_labels(root) for root in roots]
    owner = np.full(flow.space.count, -1)
    lost: set[int] = set()
    for i, mine in enumerate(labels):
        # The auxiliary pass repeats calls of the main pass.
        if roots[i].at < recorded:
            shared = owner[mine][owner[mine] >= 0]
            lost |= {i, *shared.tolist()} if len(shared) else set()
            owner[mine] = i
        elif (owner[mine] < 0).any():
            lost.add(i)
    sources = {i: _source(flow.ops, root.maker) for i, root in enumerate(roots) if root.at < recorded}
    lost |= {i for i, source in sources.items() if source is None}
    lost |= _read_elsewhere(flow.ops[:recorded], roots, sources, owner)
    found = []
    for i, root in enumerate(roots):
        source = sources.get(i)
        places = _places(flow, flow.ops[source], root, labels[i]) if source is not None and i not in lost else ()
        if places:
            width = _width(root)
            assert isinstance(width, Extent)
            found.append(Rescaling(places, width, 0.5))
        elif root.at < recorded or i in lost:
            flow.space.at = root.call
            fix_all(flow.space, list(root.query[1]), len(root.query[0]) - 1, root.reason)
    return found


def _width(root: Root) -> Extent | int:
    shape, families = root.query
    return extent(shape, families, len(shape) - 1)


def _labels(root: Root) -> np.ndarray:
    """Return the labels of all positions along the width."""
    last = len(root.query[0]) - 1
    along = [f.labels.reshape(-1).numpy() for f in root.query[1] if last in f.dims]
    return np.unique(np.concatenate(along))


def _source(ops: Sequence[Op], maker: int | None) -> int | None:
    """Walk back over movements to the layer that made the query."""
    while maker is not None and ops[maker].name in MOVES and len(ops[maker].feeds) == 1:
        maker = ops[maker].feeds[0]
    if maker is None or ops[maker].name not in LAYERS | NORMS:
        return None
    computed = len(ops[maker].operands) - len(ops[maker].parameters) - 1
    return None if computed or not ops[maker].parameters else maker


def _read_elsewhere(
    ops: Sequence[Op], roots: Sequence[Root], sources: dict[int, int | None], owner: np.ndarray
) -> set[int]:
    """Return the roots whose query is read by something else than movements, or whose layer runs twice."""
    found: set[int] = set()
    layers = {i: set(ops[source].parameters) for i, source in sources.items() if source is not None}
    for at, op in enumerate(ops):
        found |= {i for i, names in layers.items() if at != sources[i] and names & set(op.parameters)}
        if op.name in MOVES:
            continue
        for position, operand in enumerate(op.operands):
            for family in operand[1] if operand is not None else ():
                met = owner[family.labels.reshape(-1).numpy()]
                for i in np.unique(met[met >= 0]).tolist():
                    source = sources.get(i)
                    asked = at == roots[i].at and position == roots[i].position
                    if source is not None and at > source and not asked:
                        found.add(i)
    return found


def _places(flow: Flow, source: Op, root: Root, labels: np.ndarray) -> tuple[tuple[str, int, np.ndarray], ...]:
    """Return what to multiply in the layer's parameters; nothing where that isn't along one dimension."""
    if source.name in NORMS:
        whole = prod(source.results[0][0]) == prod(root.query[0])
        return tuple((name, 0, np.arange(flow.leaves[name].shape[0])) for name in source.parameters) if whole else ()
    places = []
    for name in source.parameters:
        mine = [f for f in flow.leaves[name].families if np.isin(_flat(f), labels).any()]
        if len(mine) != 1 or len(mine[0].dims) > 1 or not np.isin(labels, _flat(mine[0])).all():
            return ()
        places.append((name, mine[0].dims[0], np.flatnonzero(np.isin(_flat(mine[0]), labels))))
    return tuple(places)


def _flat(family: Family) -> np.ndarray:
    return family.labels.reshape(-1).numpy()
