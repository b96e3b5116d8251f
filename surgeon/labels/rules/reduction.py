"""Ops that drop dimensions (sums, means, maxima), and windows that read whole dimensions (pooling, resampling)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from surgeon.labels.family import Family, Value, compact, project
from surgeon.labels.flow import Flow, Rule
from surgeon.trace import Call

STATISTICS = """
sum nansum mean nanmean amax amin aminmax var std var_mean std_mean prod logsumexp all any norm linalg_vector_norm
count_nonzero
""".split()
SEARCHES = "max min argmax argmin median mode nanmedian kthvalue topk sort argsort msort".split()

# name -> how many trailing dimensions the op reads as a whole
WINDOWS: dict[str, int] = {
    **{f"{kind}_pool{n}d": n for kind in ("max", "avg", "lp", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)},
    **{f"{kind}_pool{n}d_with_indices": n for kind in ("max", "adaptive_max", "fractional_max") for n in (1, 2, 3)},
    **{f"upsample_{kind}1d": 1 for kind in ("nearest", "linear")},
    **{f"upsample_{kind}2d": 2 for kind in ("nearest", "bilinear", "bicubic")},
    **{f"upsample_{kind}3d": 3 for kind in ("nearest", "trilinear")},
    **{f"_upsample_{kind}2d_aa".strip("_"): 2 for kind in ("bilinear", "bicubic")},
    **{f"upsample_nearest_exact{n}d": n for n in (1, 2, 3)},
    **{f"reflection_pad{n}d": n for n in (1, 2, 3)},
    **{f"replication_pad{n}d": n for n in (1, 2, 3)},
}

# name -> the dimensions that a Fourier transform runs over if none are given
TRANSFORMS: dict[str, tuple[int, ...] | None] = {
    **{f"fft_{kind}fft": (-1,) for kind in ("", "i", "r", "ir", "h", "ih")},
    **{f"fft_{kind}fft2": (-2, -1) for kind in ("", "i", "r", "ir", "h", "ih")},
    **{f"fft_{kind}fftn": None for kind in ("", "i", "r", "ir", "h", "ih")},
    **{f"fft_{kind}fftshift": None for kind in ("", "i")},
}

_DIM_AT = {"norm": 2, "linalg_vector_norm": 2, "kthvalue": 2, "topk": 2}


def reduced_dims(call: Call, tensor: Tensor) -> list[int]:
    """Return the dimensions that a reduction drops."""
    position = _DIM_AT.get(call.name, 1)
    dim: Any = call.argument(position, "dim", call.kwargs.get("axis"))
    if call.name in ("sort", "argsort", "topk", "kthvalue", "median", "mode") and dim is None:
        dim = -1 if call.name != "median" or len(call.args) > 1 else None
    if call.name == "msort":
        return [0]
    if isinstance(dim, bool) or dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return list(range(tensor.dim()))
    dims: Sequence[Any] = dim if isinstance(dim, (tuple, list)) else (dim,)
    return [int(d) % max(tensor.dim(), 1) for d in dims]


def statistic(flow: Flow, call: Call) -> None:
    """Dimensions are summed over; a reference takes the statistic over what is left."""
    tensor = call.args[0]
    value = flow.value(tensor)
    dims = reduced_dims(call, tensor)
    flow.reduced(tensor, dims)
    drop(flow, call, value, dims)


def search(flow: Flow, call: Call) -> None:
    """Ops that answer with positions: the dimension searched may not shrink."""
    tensor = call.args[0]
    if isinstance(call.argument(1, "other"), Tensor):
        from surgeon.labels.rules.elementwise import elementwise

        return elementwise(flow, call)
    dims = reduced_dims(call, tensor)
    flow.align(tensor, dims)
    flow.solid(tensor, dims, f"{call.name} answers with places along the dimension")
    drop(flow, call, flow.value(tensor), dims)


def drop(flow: Flow, call: Call, value: Value, dims: Sequence[int]) -> None:
    """Set the results of a reduction: what the families say about the other dimensions."""
    left = beside(flow, value.families, len(value.shape), dims)
    for result in call.results:
        if result.dim() == len(value.shape):
            flow.set(result, left)
        else:
            flow.set(result, [_squeeze(f, dims) for f in left])


def beside(flow: Flow, families: Sequence[Family], rank: int, dims: Sequence[int]) -> list[Family]:
    """Return what families say about the other dimensions."""
    keep = [d for d in range(rank) if d not in dims]
    return [left for family in families if (left := project(flow.space, family, keep)) is not None]


def squeezed(flow: Flow, families: Sequence[Family], rank: int, dims: Sequence[int]) -> list[Family]:
    """Return what families say about the other dimensions, with these dropped."""
    return [_squeeze(family, dims) for family in beside(flow, families, rank, dims)]


def _squeeze(family: Family, dims: Sequence[int]) -> Family:
    def run(labels: Tensor) -> Tensor:
        for dim in sorted(dims, reverse=True):
            labels = labels.squeeze(dim)
        return compact(labels)

    return Family(run(family.labels), tuple(Family(run(p.labels)) for p in family.parents))


def window(flow: Flow, call: Call) -> None:
    """Windows over trailing dimensions, which stay; channels pass."""
    rank = call.args[0].dim()
    whole(flow, call, range(rank - WINDOWS[call.name], rank))


def transform(flow: Flow, call: Call) -> None:
    """Fourier transforms read the dimensions that they run over as a whole, channels beside them pass."""
    rank, shift = call.args[0].dim(), call.name.endswith("shift")
    given = call.argument(1 if shift else 2, "dim", TRANSFORMS[call.name])
    size = None if shift else call.argument(1, "s", call.kwargs.get("n"))
    if given is None:
        given = range(rank - len(size), rank) if size is not None else range(rank)
    whole(flow, call, [int(d) % rank for d in ([given] if isinstance(given, int) else given)])


def whole(flow: Flow, call: Call, dims: Sequence[int]) -> None:
    """Dimensions that an op reads as a whole stay; what is known about the others passes."""
    tensor = call.args[0]
    flow.solid(tensor, dims, f"{call.name} reads the dimension as a whole")
    left = beside(flow, flow.value(tensor).families, tensor.dim(), dims)
    for result in call.results:
        flow.set(result, list(left))


RULES: dict[str, Rule] = {
    **{name: statistic for name in STATISTICS},
    **{name: search for name in SEARCHES},
    **{name: window for name in WINDOWS},
    **{name: transform for name in TRANSFORMS},
}
