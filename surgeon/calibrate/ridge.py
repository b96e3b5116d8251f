"""Least squares from streamed sums."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from surgeon.calibrate.shared import gathered, together

# Rows that are multiplied in the precision of the activations before the product joins the float64 sums.
CHUNK = 8192


@dataclass
class Sums:
    """First and second moments of rows x ``[g, rows, k]`` and targets t ``[g, rows, o]``, in float64.

    Both are shifted by what the first rows are on average, which keeps the products small. Without ``full`` only the
    squares of x are summed, ``[g, k]``, and no products with t.
    """

    full: bool = True
    rows: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    shift: tuple[Tensor, Tensor] | None = None

    def __str__(self) -> str:
        return f"Sums of {self.rows} rows"

    def copy(self) -> Sums:
        """Return sums that can go on from here."""
        return replace(self, sums=dict(self.sums))

    def add(self, x: Tensor, t: Tensor) -> None:
        """Add rows."""
        if not x.shape[1]:
            return
        if self.shift is None:
            self.shift = x.double().mean(1, keepdim=True), t.double().mean(1, keepdim=True)
        for xs, ts in zip(x.split(CHUNK, 1), t.split(CHUNK, 1)):
            self._add(xs, ts)

    def _add(self, x: Tensor, t: Tensor) -> None:
        assert self.shift is not None
        wide = torch.promote_types(x.dtype, torch.float32)
        x, t = (x.to(wide) - self.shift[0].to(wide)), (t.to(wide) - self.shift[1].to(wide))
        new = {name: value.sum(1, dtype=torch.float64) for name, value in (("x", x), ("t", t), ("tt", t.square()))}
        if self.full:
            new |= {"xt": (x.mT @ t).double(), "xx": (x.mT @ x).double()}
        else:
            new["xx"] = x.square().sum(1, dtype=torch.float64)
        self.rows += x.shape[1]
        for name, value in new.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def moments(self) -> Moments:
        """Return means and covariances; under ``torch.distributed``, those of the rows of all processes."""
        assert self.shift is not None
        mean = {name: value / self.rows for name, value in self.sums.items()}
        x, t = mean["x"], mean["t"]
        xx = mean["xx"] - _outer(x, x) if self.full else (mean["xx"] - x.square()).clamp(min=0)
        xt = mean["xt"] - _outer(x, t) if self.full else None
        means = x + self.shift[0].squeeze(1), t + self.shift[1].squeeze(1)
        return Moments(self.rows, *means, xx, xt, mean["tt"] - t.square()).everywhere()


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a.unsqueeze(2) * b.unsqueeze(1)


@dataclass(frozen=True, eq=False)
class Moments:
    """Means and covariances: x ``[g, k]``, t ``[g, o]``, xx ``[g, k, k]``, xt ``[g, k, o]``, tt ``[g, o]``."""

    rows: int
    x: Tensor
    t: Tensor
    xx: Tensor
    xt: Tensor | None
    tt: Tensor

    def __str__(self) -> str:
        return f"Moments of {self.rows} rows"

    def everywhere(self) -> Moments:
        """Return the moments of the rows of all processes."""
        if not together():
            return self
        products = _outer(self.x, self.x) if self.xx.dim() == 3 else self.x.square()
        cross = self.x.new_zeros(()) if self.xt is None else self.xt + _outer(self.x, self.t)
        mine = [self.x, self.t, self.xx + products, self.tt + self.t.square(), cross]
        many = torch.tensor(float(self.rows), dtype=torch.float64, device=self.x.device)
        many, *sums = gathered([many, *(value * many for value in mine)])
        x, t, xx, tt, cross = (value / many for value in sums)
        xx = xx - _outer(x, x) if xx.dim() == 3 else (xx - x.square()).clamp(min=0)
        return Moments(int(many), x, t, xx, None if self.xt is None else cross - _outer(x, t), tt - t.square())

    def towards(self, x: Tensor, t: Tensor) -> Moments:
        """Return the moments of the same rows with other targets, ``t [g, rows, o]``."""
        assert self.xt is not None
        mean = gathered([t.sum(1, dtype=torch.float64)])[0] / self.rows
        rest = t - mean.unsqueeze(1).to(t)
        wide = torch.promote_types(x.dtype, torch.float32)
        chunks = zip(x.split(CHUNK, 1), rest.split(CHUNK, 1))
        xt = sum(((a.to(wide).mT @ b.to(wide)).double() for a, b in chunks), torch.zeros_like(self.xt))
        sums = gathered([xt, rest.sum(1, dtype=torch.float64), rest.square().sum(1, dtype=torch.float64)])
        xt, left, tt = (value / self.rows for value in sums)
        # What rounding left of the mean of t would meet the mean of x.
        return replace(self, t=mean + left, xt=xt - _outer(self.x, left), tt=tt)

    def uncentred(self) -> Moments:
        """Return the moments about zero, for fits without an offset."""
        assert self.xt is not None
        xx, xt = self.xx + _outer(self.x, self.x), self.xt + _outer(self.x, self.t)
        zeros = torch.zeros_like(self.x), torch.zeros_like(self.t)
        return Moments(self.rows, *zeros, xx, xt, self.tt + self.t.square())

    def fit(self, prior: Tensor, ridge: float) -> Tensor | None:
        """Return ``argmin |x w' - t|^2 + penalty |w - prior|^2``, ``[g, o, k]``; None if the system is singular.

        The penalty is ``ridge`` times the mean variance of x.
        """
        assert self.xt is not None
        penalty = ridge * self.xx.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-300)
        eye = torch.eye(self.xx.shape[1], dtype=torch.float64, device=self.xx.device)
        factor, info = torch.linalg.cholesky_ex(self.xx + penalty.view(-1, 1, 1) * eye)
        if bool(info.any()):
            return None
        change = self.xt - self.xx @ prior.double().mT
        found = prior.double() + torch.cholesky_solve(change, factor).mT
        return found if bool(torch.isfinite(found).all()) else None

    def offset(self, weight: Tensor) -> Tensor:
        """Return the offset that goes with a weight, ``[g, o]``: means are met exactly."""
        return self.t - (weight.double() @ self.x.unsqueeze(2)).squeeze(2)
