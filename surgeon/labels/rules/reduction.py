"""Ops that drop dimensions (sums, means, maxima), and windows that read whole dimensions (pooling, resampling)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from surgeon.labels.family import Family, Value, compact, project
from surgeon.labels.flow import Flow, Rule
from surgeon.modules import tensors_in
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
    tensor = call.args[0]
    value = flow.value(tensor)
    dims = reduced_dims(call, tensor)
    flow.reduced(tensor, dims)
    drop(flow, call, value, dims)


def search(flow: Flow, call: Call) -> None:
    """Ops that answer with positions: the dimension searched may not shrink."""
    tensor = call.args[0]
    if len(call.args) > 1 and isinstance(call.args[1], Tensor):
        from surgeon.labels.rules.elementwise import elementwise

        return elementwise(flow, call)
    dims = reduced_dims(call, tensor)
    flow.align(tensor, dims)
    flow.solid(tensor, dims, f"{call.name} answers with places along the dimension")
    drop(flow, call, flow.value(tensor), dims)


def drop(flow: Flow, call: Call, value: Value, dims: Sequence[int]) -> None:
    """Set the results of a reduction: what the families say about the other dimensions."""
    keep = [d for d in range(len(value.shape)) if d not in dims]
    left = [f for family in value.families if (f := project(flow.space, family, keep)) is not None]
    for result in tensors_in(call.result):
        if result.dim() == len(value.shape):
            flow.set(result, left)
        else:
            flow.set(result, [_squeeze(f, dims) for f in left])


def _squeeze(family: Family, dims: Sequence[int]) -> Family:
    def run(labels: Tensor) -> Tensor:
        for dim in sorted(dims, reverse=True):
            labels = labels.squeeze(dim)
        return compact(labels)

    return Family(run(family.labels), tuple(Family(run(p.labels)) for p in family.parents))


def window(flow: Flow, call: Call) -> None:
    tensor = call.args[0]
    count = WINDOWS[call.name]
    value = flow.value(tensor)
    rank = tensor.dim()
    flow.solid(tensor, range(rank - count, rank), f"{call.name} reads the dimension as a whole")
    keep = range(rank - count)
    left = [f for family in value.families if (f := project(flow.space, family, keep)) is not None]
    for result in tensors_in(call.result):
        flow.set(result, left)


RULES: dict[str, Rule] = {
    **{name: statistic for name in STATISTICS},
    **{name: search for name in SEARCHES},
    **{name: window for name in WINDOWS},
}
