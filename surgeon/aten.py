"""The operators of exported programs, by the names and signatures that the rule tables know.

Most operators are torch functions under another roof: ``aten.linear.default`` takes what ``torch.linear`` takes. Their
name is all that is needed. Where an operator has a signature of its own, it is spelled as torch calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

# The end of a slice that has none.
END = 2**63 - 1

_ALIASES = {"native_channel_shuffle": "channel_shuffle"}


def schema_name(operator: OpOverload) -> str:
    """Return the name without overload: ``add_`` for ``aten.add_.Tensor``; other namespaces stay, ``my::add``."""
    return str(operator._schema.name).removeprefix("aten::")


def table_name(operator: OpOverload) -> str:
    """Return the table name: ``softmax`` for ``aten._softmax``, ``to`` for ``aten._to_copy``."""
    name = schema_name(operator)
    plain = name if "::" in name else name.strip("_")
    if plain != "index_copy":  # every other ``_copy`` is a view that was made to own its memory
        plain = plain.removesuffix("_copy")
    return _ALIASES.get(plain, plain)


# -- operators with a signature of their own ---------------------------------------------------------


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor:
    """Spell a convolution by its rank: ``conv2d``, ``conv_transpose1d``."""
    spatial = weight.dim() - 2
    if not transposed:
        plain: Callable[..., Tensor] = getattr(F, f"conv{spatial}d")
        return plain(input, weight, bias, stride, padding, dilation, groups)
    turned: Callable[..., Tensor] = getattr(F, f"conv_transpose{spatial}d")
    return turned(input, weight, bias, stride, padding, output_padding, groups, dilation)


def _batch_norm(
    input: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float
) -> tuple[Tensor, None, None]:
    return torch.batch_norm(input, weight, bias, running_mean, running_var, False, momentum, eps, False), None, None


def _layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, None, None]:
    return torch.layer_norm(input, normalized_shape, weight, bias, eps), None, None


def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, None]:
    return torch.rms_norm(input, normalized_shape, weight, eps), None


def _group_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, N: int, C: int, HxW: int, group: int, eps: float
) -> tuple[Tensor, None, None]:
    # What the operator demands of its sizes: the recorder reads it off the comparison.
    if input.size(1) != C:
        raise ValueError(f"native_group_norm was told of {C} channels and got {input.size(1)}")
    return torch.group_norm(input, group, weight, bias, eps, False), None, None


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Any, ...]:
    result = F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    return (result, *[None] * 8)


def _attention_with_bias(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None = None,
    compute_log_sumexp: bool = False,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    return _attention(query, key, value, dropout_p, is_causal, attn_mask=attn_bias, scale=scale)


def _at(tensor: Tensor, dim: int, entry: Any) -> tuple[Any, ...]:
    """Return an index that is ``entry`` along one dimension and everything along the others."""
    return (*[slice(None)] * (int(dim) % tensor.dim()), entry)


def _bounds(start: int | None, end: int | None, step: int) -> slice:
    open_start = start is None or (int(start) == 0)
    open_end = end is None or int(end) == END
    return slice(None if open_start else start, None if open_end else end, None if int(step) == 1 else step)


def _slice(self: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    return self[_at(self, dim, _bounds(start, end, step))]


def _slice_scatter(
    self: Tensor, src: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    written = self.clone()
    written[_at(self, dim, _bounds(start, end, step))] = src
    return written


def _select_scatter(self: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    written = self.clone()
    written[_at(self, dim, int(index))] = src
    return written


def _index(self: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    return self[tuple(slice(None) if i is None else i for i in indices)]


def _index_put(self: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    if accumulate:
        return index_put(self, indices, values)
    written = self.clone()
    written[tuple(slice(None) if i is None else i for i in indices)] = values
    return written


def index_put(self: Tensor, indices: Sequence[Tensor | None], values: Tensor) -> Tensor:
    """Add values to places; ``torch.index_put`` takes no dimension as a whole, which the operator does."""
    if has_torch_function((self, values)):
        return handle_torch_function(index_put, (self, values), self, indices, values)
    return torch.ops.aten.index_put.default(self, indices, values, True)


def _view(self: Tensor, size: Any) -> Tensor:
    """Spell a view as a reshape: the masked reference may lay out a statistic's result in another order."""
    return self.view(size) if isinstance(size, torch.dtype) else self.reshape(size)


def _as_strided(self: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    """Spell the strides of a contiguous tensor as a reshape: pooling to a single pixel ends in them."""
    if storage_offset or not _contiguous(self, size, stride):
        return torch.as_strided(self, size, stride, storage_offset)
    return self.reshape(size)


def _contiguous(tensor: Tensor, size: Sequence[int], stride: Sequence[int]) -> bool:
    """Tell whether sizes are those of a tensor and strides those of a contiguous one; a single position needs none."""
    if list(map(int, size)) != list(map(int, tensor.size())):
        return False
    expected: Any = 1
    for dim in reversed(range(len(size))):
        if int(size[dim]) > 1 and stride[dim] != expected:
            return False
        expected = expected * tensor.size(dim)
    return True


def _pad(self: Tensor, pad: Any, value: float = 0) -> Tensor:
    return F.pad(self, pad, "constant", value)


def _statistics_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, None, None]:
    """Spell a batch norm in training mode, which is what instance norm becomes; it may keep no statistics."""
    training, momentum, eps = rest
    return torch.batch_norm(input, weight, bias, None, None, training, momentum, eps, False), None, None


def _full(size: Any, fill_value: Any, **options: Any) -> Tensor:
    """Spell True as 1 where the type says what it is: fvcore's tracer knows no full of a bool."""
    told = options.get("dtype") is not None
    return torch.full(size, int(fill_value) if told and isinstance(fill_value, bool) else fill_value, **options)


def _prelu(self: Tensor, weight: Tensor) -> Tensor:
    return torch.where(self > 0, self, weight * self)


def _size(self: Tensor, dim: int) -> int:
    return self.size(int(dim))


SPELLED: dict[str, Callable[..., Any]] = {
    "convolution": _convolution,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _rms_norm,
    "native_group_norm": _group_norm,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_efficient_attention": _attention_with_bias,
    "_scaled_dot_product_fused_attention_overrideable": _attention_with_bias,
    "view": _view,
    "_unsafe_view": _view,
    "view_copy": _view,
    "as_strided": _as_strided,
    "constant_pad_nd": _pad,
    "_native_batch_norm_legit": _statistics_norm,
    "_adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "_prelu_kernel": _prelu,
    "full": _full,
    "slice": _slice,
    "slice_copy": _slice,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
    "index": _index,
    "_unsafe_index": _index,
    "index_put": _index_put,
    "_unsafe_index_put": _index_put,
    "sym_size": _size,
    "sym_numel": Tensor.numel,
}


def spelling(function: Any) -> Callable[..., Any] | None:
    """Return how an operator is spelled in torch functions; None where its name is enough."""
    return SPELLED.get(schema_name(function)) if isinstance(function, OpOverload) else None


def is_inplace(function: Any) -> bool:
    """Tell whether a torch function or operator writes into its first tensor: ``add_``, ``aten.add_.Tensor``."""
    name = schema_name(function) if isinstance(function, OpOverload) else getattr(function, "__name__", "")
    return bool(name.endswith("_") and not name.endswith("__"))
