"""Powers of a width that a tensor is multiplied by: a parameter upstream can make up for them, so the width may shrink.

``scaled_dot_product_attention(q, k, v)`` multiplies its logits by ``d ** -0.5``, where d is the width of q, and so does
``q * q.shape[-1] ** -0.5``. When d shrinks to d', the logits stay as they were if q is multiplied by
``(d' / d) ** 0.5``. Where q comes from one layer through nothing but movements, and nothing else reads it before, that
factor goes into the layer's weights; otherwise d stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from surgeon.labels.family import Family
from surgeon.labels.flow import Flow
from surgeon.labels.ops import Op, Root, Shape
from surgeon.trace import Expression

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
PRODUCTS = frozenset("matmul bmm".split())


@dataclass(frozen=True, eq=False)
class Rescaling:
    """Positions of parameters that are multiplied by ``(new width / old width) ** power`` after a cut.

    places : parameter, dimension, positions along it
    """

    places: tuple[tuple[str, int, np.ndarray], ...]
    width: Expression
    power: float

    def __str__(self) -> str:
        names = ", ".join(name for name, _, _ in self.places)
        return f"{names} times ({self.width}) ** {self.power}"


def rescalings(flow: Flow, recorded: int) -> tuple[list[Rescaling], list[Root]]:
    """Return what can be made up for, and the other roots, whose widths have to stay.

    Parameters
    ----------
    recorded : number of ops of the main pass; those after it ran once more for their auxiliary branches
    """
    found, stuck = [], []
    settled = np.zeros(0, np.int64)
    for given in flow.roots:
        root = _before_product(flow.ops, given)
        labels = _labels(root)
        if root.at >= recorded:  # the auxiliary pass repeats calls of the main pass
            stuck += [] if np.isin(labels, settled).all() else [root]
            continue
        places = _makes_up(flow, flow.ops[:recorded], root, labels)
        if places:
            found.append(Rescaling(places, root.width, -root.power))
            settled = np.concatenate([settled, labels])
        else:
            stuck.append(root)
    return found, stuck


def _before_product(ops: Sequence[Op], root: Root) -> Root:
    """A factor on a matrix product that nothing else reads is one on its first matrix: ``(q @ k.mT) * d ** -0.5``."""
    maker = root.maker
    if maker is None or ops[maker].name not in PRODUCTS or ops[maker].operands[0] is None:
        return root
    if any(maker in op.makers and at != root.at for at, op in enumerate(ops)):
        return root
    first = ops[maker].operands[0]
    assert first is not None
    return replace(root, at=maker, position=0, query=first, maker=ops[maker].makers[0])


def _labels(root: Root) -> np.ndarray:
    """Return the labels of all positions along the last dimension."""
    last = len(root.query[0]) - 1
    along = [_flat(f) for f in root.query[1] if last in f.dims]
    return np.unique(np.concatenate(along)) if along else np.zeros(0, np.int64)


def _makes_up(flow: Flow, ops: Sequence[Op], root: Root, labels: np.ndarray) -> tuple[tuple[str, int, np.ndarray], ...]:
    """Return the places that a factor goes to; nothing where it would reach something else."""
    source = _source(ops, root.maker)
    if source is None or not len(labels) or _read_elsewhere(ops, root, source, labels):
        return ()
    return _places(flow, ops[source], root, labels)


def _source(ops: Sequence[Op], maker: int | None) -> int | None:
    """Walk back over movements to the layer that made the tensor."""
    while maker is not None and ops[maker].name in MOVES and len(ops[maker].feeds) == 1:
        maker = ops[maker].feeds[0]
    if maker is None or ops[maker].name not in LAYERS | NORMS:
        return None
    computed = len(ops[maker].operands) - len(ops[maker].parameters) - 1
    return None if computed or not ops[maker].parameters else maker


def _read_elsewhere(ops: Sequence[Op], root: Root, source: int, labels: np.ndarray) -> bool:
    """Tell whether the layer runs twice, or something else than movements reads what it makes before the root does."""
    names = set(ops[source].parameters)
    if any(names & set(op.parameters) for at, op in enumerate(ops) if at != source):
        return True
    holders, other = {source}, _other_parts(ops[source], labels)
    for at, op in enumerate(ops):
        read = [i for i, maker in enumerate(op.makers) if maker in holders and not _apart(op.operands[i], other)]
        if not read or (at == root.at and read == [root.position]):
            continue
        if op.name not in MOVES:
            return True
        holders.add(at)
    return False


def _other_parts(source: Op, labels: np.ndarray) -> np.ndarray:
    """Return the labels of the positions beside the given ones, along the dimension of the result that holds both."""
    along = [_flat(family) for _, families in source.results for family in families]
    mine = [found for found in along if np.isin(found, labels).any()]
    return np.setdiff1d(np.concatenate(mine), labels) if mine else np.zeros(0, np.int64)


def _apart(shape: Shape | None, other: np.ndarray) -> bool:
    """Tell whether all that a tensor holds comes from other parts of the layer's result, as labels show.

    New labels, or none, show nothing: movements make them where dimensions merge, of the very same data.
    """
    return shape is not None and any(np.isin(_flat(family), other).all() for family in shape[1])


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
