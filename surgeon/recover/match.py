"""Queries and keys of fewer columns whose products come closest to what they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from surgeon.calibrate import Contraction, Layer, Player, Tape, drawn, gathered, layers
from surgeon.errors import RecoverError
from surgeon.plan.plan import Plan
from surgeon.recover.gather import HELD_OUT, Limits
from surgeon.recover.heads import Heads, heads
from surgeon.recover.kept import Kept, kept

# Share of the mean second moment that is added to each.
RIDGE = 1e-12


@dataclass(frozen=True, eq=False)
class Match:
    """New columns for the heads of one attention, with the error of its logits before and after on held-out rows.

    mixtures  call -> how filters of the original make up those of the small model ``[o, o']``, float64
    """

    heads: Heads
    before: float
    after: float
    rows: int
    mixtures: Mapping[int, Tensor]

    @property
    def taken(self) -> bool:
        return self.after < self.before

    @property
    def name(self) -> str:
        """The layers of the queries and of the keys."""
        return ", ".join(dict.fromkeys(str(c.weight).removesuffix(".weight") for c in (self.heads.q, self.heads.k)))

    @property
    def width(self) -> int:
        """Columns of a head."""
        return self.heads.rows[0].shape[1]

    def __str__(self) -> str:
        return f"logits of {len(self.heads.rows[0])} heads"


@dataclass(eq=False)
class _Seconds:
    """Second moments of the columns of one head, those that are fitted and those that judge."""

    sums: list[Tensor] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)
    rows: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def __str__(self) -> str:
        return f"second moments of {self.rows} rows"

    def add(self, x: Tensor, judges: Tensor) -> None:
        """Add rows ``[rows, width]``."""
        for part, chosen in enumerate((x[~judges], x[judges])):
            chosen = chosen.double()
            if len(self.sums) == part:
                self.sums.append(chosen.new_zeros(x.shape[1], x.shape[1]))
                self.means.append(chosen.new_zeros(x.shape[1]))
            self.sums[part] += chosen.mT @ chosen
            self.means[part] += chosen.sum(0)
            self.rows[part] += len(chosen)

    def moments(self, centred: bool) -> list[Tensor]:
        """Return second moments of both parts, about the mean or about zero, of the rows of all processes."""
        found = []
        for second, first, count in zip(self.sums, self.means, self.rows):
            second, first, rows = gathered([second, first, torch.tensor(count).to(second)])
            mean = first / rows.clamp(min=1)
            found.append((second / rows.clamp(min=1) - (mean.outer(mean) if centred else 0)).cpu())
        return found


def match(tapes: Sequence[tuple[Tape, Tape]], plan: Plan, limits: Limits, draw: torch.Generator) -> list[Match]:
    """Find columns for queries and keys that have lost some, and write those that are better into the small model.

    With second moments ``L L'`` of what the original's queries and keys are, the products of s columns that come
    closest to its logits follow from the singular vectors of ``Lq' Lk`` (Eckart and Young, 1936): queries become
    ``q Lq^-T U S^1/2`` and keys ``k Lk^-T V S^1/2``. Both are mixtures of filters, so they go into the weights. Where
    heads share keys, their queries stand on top of each other.
    """
    whole, small = tapes[0]
    alone = {layer.first.at: layer for layer in layers(whole) if len(layer.calls) == 1}
    theirs = {layer.first.at: layer for layer in layers(small) if len(layer.calls) == 1}
    stay = dict(_narrowed(plan, whole, [alone[at] for at in alone.keys() & theirs.keys()]))
    wanted = [
        found for found in heads(whole, [alone[at].first for at in stay]) if found.q.at in stay and found.k.at in stay
    ]
    if not wanted:
        return []
    known = _collected([whole for whole, _ in tapes], wanted, limits, draw)
    mixtures = {at: _selection(alone[at].first, kept, whole) for at, kept in stay.items()}
    found = []
    for each in wanted:
        fit = _matched(each, stay, known, mixtures)
        if fit is not None:
            found.append(fit)
            if fit.taken:
                mixtures.update(fit.mixtures)
    for at in {at for fit in found if fit.taken for at in fit.mixtures}:
        _write(alone[at], theirs[at], stay[at], mixtures[at], whole, small)
    return found


def _narrowed(plan: Plan, tape: Tape, found: Sequence[Layer]) -> Iterator[tuple[int, Kept]]:
    """Yield the layers without groups that lose filters, and what stays of each."""
    for layer in found:
        call = layer.first
        if call.weight.leaf not in plan.cuts or call.groups > 1 or (call.bias is not None and layer.bias is None):
            continue
        try:
            stay = kept(plan, call, tape.leaves)
        except RecoverError:
            continue
        if not bool(stay.outputs.all()):
            yield call.at, stay


def _selection(call: Contraction, stay: Kept, tape: Tape) -> Tensor:
    """Return what the cut makes of the filters: those that stay, times their factors, ``[o, o']``."""
    return torch.eye(stay.outputs.numel(), dtype=torch.float64)[:, stay.filters] * stay.factor


def _collected(
    tapes: Sequence[Tape], wanted: Sequence[Heads], limits: Limits, draw: torch.Generator
) -> dict[tuple[int, tuple[int, ...]], _Seconds]:
    """Return second moments by layer and columns."""
    known: dict[tuple[int, tuple[int, ...]], _Seconds] = {}
    calls: dict[int, Contraction] = {}
    for each in wanted:
        for call, rows in ((each.q, each.rows[0]), (each.k, each.rows[1])):
            calls[call.at] = call
            known.update(((call.at, tuple(row)), _Seconds()) for row in rows.tolist())
    seen = 0
    for tape in tapes:
        player = Player(tape)
        for at in sorted(calls):
            call, shape = calls[at], tape.shapes[calls[at].x]
            player.advance(at + 1)
            count = call.positions(shape)
            places = drawn(count, -(-limits.rows // len(tapes)), draw)
            made = call.outputs(player.value(call.y), places.to(player.value(call.y).device))
            judges = (call.samples(shape, places) + seen) % HELD_OUT == HELD_OUT - 1
            for (layer, columns), seconds in known.items():
                if layer == at:
                    seconds.add(made[:, list(columns)], judges.to(made.device))
        seen += tape.shapes[calls[min(calls)].x][0]
    return known


def _matched(
    each: Heads,
    stay: Mapping[int, Kept],
    known: Mapping[tuple[int, tuple[int, ...]], _Seconds],
    mixtures: Mapping[int, Tensor],
) -> Match | None:
    """Return new mixtures for one attention; None where no head has lost some but not all of its columns."""
    new = {at: mixtures[at].clone() for at in {each.q.at, each.k.at}}
    errors, rows, narrowed = [0.0, 0.0, 0.0], 0, False
    for key in each.rows[1].unique(dim=0):
        mine = (each.rows[1] == key).all(1).nonzero().squeeze(1)
        queries = [each.rows[0][head] for head in mine]
        alive = _alive(stay[each.k.at], key)
        if any(not torch.equal(_alive(stay[each.q.at], q), alive) for q in queries):
            return None
        if not bool(alive.any()):
            continue
        narrowed |= not bool(alive.all())
        k = known[each.k.at, tuple(key.tolist())]
        qs = [known[each.q.at, tuple(q.tolist())] for q in queries]
        if min(k.rows) == 0 or min(min(q.rows) for q in qs) == 0:
            return None
        kk, qq = k.moments(each.softmax), [q.moments(False) for q in qs]
        ps, r = _columns([q[0] for q in qq], kk[0], int(alive.sum()))
        eye = torch.eye(len(alive), dtype=torch.float64)
        for (_, judge), p in zip(qq, ps):
            for i, product in enumerate((eye[:, alive] @ eye[alive], p @ r.mT, torch.zeros_like(eye))):
                off = product - eye
                errors[i] += float(((judge @ off) * (off @ kk[1])).sum())
        for at, columns, mix in [*((each.q.at, q, p) for q, p in zip(queries, ps)), (each.k.at, key, r)]:
            _mix(new[at], stay[at], columns, alive, mix)
        rows = int(k.rows[0])
    if not narrowed:
        return None
    before, after = (max(error, 0.0) / max(errors[2], 1e-300) for error in errors[:2])
    return Match(each, before, after, rows, new)


def _alive(stay: Kept, columns: Tensor) -> Tensor:
    return stay.outputs.reshape(-1)[columns]


def _columns(queries: Sequence[Tensor], keys: Tensor, many: int) -> tuple[list[Tensor], Tensor]:
    """Return what makes so many columns of queries and of keys from all, ``[width, many]`` each."""
    lq, lk = [_root(q) for q in queries], _root(keys)
    u, s, vh = torch.linalg.svd(torch.cat([root.mT @ lk for root in lq]), full_matrices=False)
    half = s[:many].sqrt()
    parts = (u[:, :many] * half).split([len(root) for root in lq])
    ps = [torch.linalg.solve_triangular(root.mT, part, upper=True) for root, part in zip(lq, parts)]
    return ps, torch.linalg.solve_triangular(lk.mT, vh[:many].mT * half, upper=True)


def _root(second: Tensor) -> Tensor:
    """Return a triangular L with ``L L'`` a second moment."""
    eye, size = torch.eye(len(second), dtype=torch.float64), second.diagonal().mean().clamp(min=1e-300)
    for ridge in (RIDGE, 1e-9, 1e-6):
        root, info = torch.linalg.cholesky_ex(second + ridge * size * eye)
        if not int(info):
            return root
    return torch.diag(second.diagonal().clamp(min=0).add(1e-6 * size).sqrt())


def _mix(mixture: Tensor, stay: Kept, columns: Tensor, alive: Tensor, mix: Tensor) -> None:
    """Put the columns of one head into a layer's mixture, with the factors of the cut."""
    place = torch.full((stay.outputs.numel(),), -1)
    place[stay.filters] = torch.arange(len(stay.filters))
    to = place[columns[alive]]
    mixture[:, to] = 0
    mixture[columns.unsqueeze(1), to] = mix * stay.factor[to]


def _write(layer: Layer, theirs: Layer, stay: Kept, mixture: Tensor, whole: Tape, small: Tape) -> None:
    weight = layer.first.matrix(whole.leaves).double().cpu()[0]
    theirs.first.write((mixture.mT @ weight[:, stay.inputs[0]]).unsqueeze(0), small.leaves)
    if layer.bias is not None and theirs.bias is not None:
        bias = layer.bias.read(whole.leaves).double().cpu()
        theirs.bias.write(small.leaves, mixture.mT @ bias)
