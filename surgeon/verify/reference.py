"""The masked original: every position that the plan removes is zero, every statistic is over the survivors.

This is written against the plan and the original model alone; it shares no code with the surgery.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from surgeon.dispatch import ASIDES, SIZE_QUERIES, intercept, op_name
from surgeon.errors import VerificationError
from surgeon.modules import tensors_in
from surgeon.plan.plan import Masked, Plan, Selection

Statistic = Callable[[Callable[..., Any], Tensor, Tensor, tuple[Any, ...], dict[str, Any]], Any]

# What is removed is zero, and so may be its sum: what is divided by zero has to be zero, or weights of zero would not
# blank it. Where the small model itself divides by zero, the two differ.
QUOTIENTS = frozenset({"div", "divide", "true_divide", "truediv"})
RECIPROCALS = frozenset({"reciprocal", "rsqrt"})


def flags(selection: Selection, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return which positions of a tensor a selection keeps, with size 1 along the other dimensions."""
    keep = torch.zeros(selection.of, dtype=torch.bool)
    keep[torch.from_numpy(selection.keep)] = True
    return keep.view([size if d in selection.dims else 1 for d, size in enumerate(shape)]).to(device)


def masked_state(state: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """Return parameters and buffers with every removed position zero."""
    masked = dict(state)
    for name, cut in plan.cuts.items():
        tensor = state[name]
        for selection in cut.selections:
            tensor = torch.where(flags(selection, tensor.shape, tensor.device), tensor, torch.zeros_like(tensor))
        masked[name] = tensor
    return masked


class Statistics:
    """Interceptor that computes the plan's masked calls over the survivors only."""

    def __init__(self, plan: Plan) -> None:
        self.at: dict[int, list[Masked]] = defaultdict(list)
        for masked in plan.masked:
            self.at[masked.call].append(masked)
        self.count = 0
        self.dtype = torch.float64

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = op_name(func)
        if name in SIZE_QUERIES or name in ASIDES:
            return func(*args, **kwargs)
        here, self.count = self.at.get(self.count, ()), self.count + 1
        divisor = _divisor(name, func, args, kwargs)
        undefined = None if divisor is None else torch.as_tensor(divisor) == 0
        result = _masked_call(name, func, args, kwargs, here) if here else func(*args, **kwargs)
        if undefined is not None and isinstance(result, Tensor) and result.is_floating_point():
            result.masked_fill_(undefined.to(result.device), 0.0)
        for tensor in tensors_in(result):
            if tensor.is_floating_point() and tensor.dtype.itemsize < self.dtype.itemsize:
                self.dtype = tensor.dtype
        return result


def _divisor(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a call divides by: ``y`` of ``x / y``, ``x`` of ``1 / x``, ``x.reciprocal()``, and ``x ** -2``."""
    if name in RECIPROCALS:
        return use(kwargs, args, 0, "input")
    other = use(kwargs, args, 1, "other", kwargs.get("exponent"))
    reflected = getattr(func, "__name__", "").startswith("__r")
    if name == "pow":
        return args[0] if not reflected and isinstance(other, (int, float)) and other < 0 else None
    return (args[0] if reflected else other) if name in QUOTIENTS else None


def _masked_call(
    name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], here: Sequence[Masked]
) -> Any:
    if here[0].op != name:
        raise VerificationError(
            f"the forward pass took another path than the recorded one: call {here[0].call} is {name}, not {here[0].op}"
        )
    tensors = tensors_in([args, kwargs])
    masks: dict[int, Tensor] = {}
    for masked in here:
        tensor = tensors[masked.position]
        keep = flags(masked.selection, tensor.shape, tensor.device)
        masks[masked.position] = masks[masked.position] & keep if masked.position in masks else keep
    statistic = STATISTICS.get(name)
    if statistic is not None and set(masks) == {0}:
        return statistic(func, tensors[0], masks[0], args, kwargs)
    blank = {id(tensors[p]): torch.where(keep, tensors[p], torch.zeros_like(tensors[p])) for p, keep in masks.items()}
    return func(*_swap(args, blank), **_swap(kwargs, blank))


def _swap(tree: Any, new: Mapping[int, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return new.get(id(tree), tree)
    if isinstance(tree, dict):
        return {k: _swap(v, new) for k, v in tree.items()}
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields"):
        return type(tree)(_swap(v, new) for v in tree)
    return tree


def use(kwargs: Mapping[str, Any], args: Sequence[Any], position: int, name: str, default: Any = None) -> Any:
    """Return an argument given by position or by name."""
    return args[position] if position < len(args) else kwargs.get(name, default)


# -- statistics over survivors: x, keep (broadcastable), over dims -----------------------------------


def moments(x: Tensor, keep: Tensor, dims: list[int], correction: float = 0) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the kept positions along dimensions, dimensions kept."""
    weight = keep.to(x.dtype).expand(x.shape)
    count = weight.sum(dims, keepdim=True)
    mean = (x * weight).sum(dims, keepdim=True) / count.clamp(min=1)
    spread = ((x - mean) ** 2 * weight).sum(dims, keepdim=True)
    # Groups that are cut as a whole have no survivor: 0 / tiny, and not 0 / 0.
    return mean, spread / (count - correction).clamp(min=torch.finfo(x.dtype).tiny)


def _dims(given: Any, x: Tensor) -> list[int]:
    if given is None or (isinstance(given, (tuple, list)) and not given):
        return list(range(x.dim()))
    return [int(d) % x.dim() for d in (given if isinstance(given, (tuple, list)) else (given,))]


def _reduced(result: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    if keepdim:
        return result
    for dim in sorted(dims, reverse=True):
        result = result.squeeze(dim)
    return result


def _mean(func: Any, x: Tensor, keep: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    dims = _dims(use(kwargs, args, 1, "dim"), x)
    return _reduced(moments(x, keep, dims)[0], dims, bool(use(kwargs, args, 2, "keepdim", False)))


def _spread(root: bool, with_mean: bool) -> Statistic:
    def statistic(func: Any, x: Tensor, keep: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        second = use(kwargs, args, 1, "dim")
        dims = _dims(None if isinstance(second, bool) else second, x)
        flags = [a for a in (*args[1:3], kwargs.get("unbiased")) if isinstance(a, bool)]
        unbiased = flags[0] if flags else True
        correction = kwargs.get("correction", 1 if unbiased else 0)
        mean, variance = moments(x, keep, dims, 1 if correction is None else correction)
        keepdim = bool(kwargs.get("keepdim", len(args) > 3 and args[3]))
        spread = _reduced(variance.sqrt() if root else variance, dims, keepdim)
        return (spread, _reduced(mean, dims, keepdim)) if with_mean else spread

    return statistic


def _filled(value: float) -> Statistic:
    """Run the op itself with cut positions at a value that can't matter to it; where nothing survives, it is zero."""

    def statistic(func: Any, x: Tensor, keep: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = _run_filled(func, x, keep, args, kwargs, value)
        if not result.is_floating_point() or value == 1.0:
            return result
        empty = _run_filled(func, x, keep, args, kwargs, value, torch.zeros_like(x)) == value
        return result.masked_fill(empty, 0.0)

    return statistic


def _run_filled(
    func: Any,
    x: Tensor,
    keep: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    value: float,
    inside: Tensor | None = None,
) -> Any:
    """Run an op with cut positions at a value, or the least or greatest that integers have, and others as they are."""
    low, high = _range(x.dtype)
    filled = torch.where(keep, x if inside is None else inside, torch.full_like(x, min(max(value, low), high)))
    return func(*_swap(args, {id(x): filled}), **_swap(kwargs, {id(x): filled}))


def _range(dtype: torch.dtype) -> tuple[float, float]:
    if dtype == torch.bool:
        return False, True
    if dtype.is_floating_point:
        return float("-inf"), float("inf")
    return torch.iinfo(dtype).min, torch.iinfo(dtype).max


def _aminmax(func: Any, x: Tensor, keep: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    low, high = (_run_filled(func, x, keep, args, kwargs, fill) for fill in (float("inf"), float("-inf")))
    return type(low)((low[0], high[1]))


def _norm(func: Any, x: Tensor, keep: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    order = use(kwargs, args, 1, "ord", kwargs.get("p", 2))
    negative = isinstance(order, (int, float)) and order < 0  # small values count most
    return _run_filled(func, x, keep, args, kwargs, float("inf") if negative else 0.0)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    x = x if weight is None else x * weight.view(*shape)
    return x if bias is None else x + bias.view(*shape)


def _layer_norm(func: Any, x: Tensor, keep: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    shape = use(kwargs, args, 1, "normalized_shape")
    dims = list(range(x.dim() - len(shape), x.dim()))
    mean, variance = moments(x, keep, dims)
    scaled = (x - mean) / (variance + use(kwargs, args, 4, "eps", 1e-5)).sqrt()
    return _affine(scaled, use(kwargs, args, 2, "weight"), use(kwargs, args, 3, "bias"), shape)


def _rms_norm(func: Any, x: Tensor, keep: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    shape = use(kwargs, args, 1, "normalized_shape")
    dims = list(range(x.dim() - len(shape), x.dim()))
    eps = use(kwargs, args, 3, "eps")
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    scaled = x / (moments(x * x, keep, dims)[0] + eps).sqrt()
    return _affine(scaled, use(kwargs, args, 2, "weight"), None, shape)


def _group_norm(func: Any, x: Tensor, keep: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    groups = int(use(kwargs, args, 1, "num_groups"))
    rows = x.reshape(x.shape[0], groups, -1)
    mean, variance = moments(rows, keep.expand(x.shape).reshape(rows.shape), [2])
    scaled = ((rows - mean) / (variance + use(kwargs, args, 4, "eps", 1e-5)).sqrt()).reshape(x.shape)
    shape = [1, x.shape[1]] + [1] * (x.dim() - 2)
    return _affine(scaled, use(kwargs, args, 2, "weight"), use(kwargs, args, 3, "bias"), shape)


def _batch_norm(func: Any, x: Tensor, keep: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    mean, variance = moments(x, keep, [d for d in range(x.dim()) if d != 1])
    scaled = (x - mean) / (variance + use(kwargs, args, 7, "eps", 1e-5)).sqrt()
    shape = [1, x.shape[1]] + [1] * (x.dim() - 2)
    return _affine(scaled, use(kwargs, args, 1, "weight"), use(kwargs, args, 2, "bias"), shape)


def _softmax(func: Any, x: Tensor, keep: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    filled = torch.where(keep, x, torch.full_like(x, float("-inf")))
    # A row with no survivor belongs to a position that is cut along another dimension.
    return torch.nan_to_num(func(*_swap(args, {id(x): filled}), **_swap(kwargs, {id(x): filled})))


STATISTICS: dict[str, Statistic] = {
    "mean": _mean,
    "nanmean": _mean,
    "aminmax": _aminmax,
    "var": _spread(root=False, with_mean=False),
    "std": _spread(root=True, with_mean=False),
    "var_mean": _spread(root=False, with_mean=True),
    "std_mean": _spread(root=True, with_mean=True),
    "amax": _filled(float("-inf")),
    "logsumexp": _filled(float("-inf")),
    "amin": _filled(float("inf")),
    "prod": _filled(1.0),
    "all": _filled(1.0),
    "norm": _norm,
    "linalg_vector_norm": _norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "softmax": _softmax,
    "log_softmax": _filled(float("-inf")),
}

__all__ = ["STATISTICS", "Statistics", "intercept", "masked_state"]
