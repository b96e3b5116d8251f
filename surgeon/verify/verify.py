"""Compare the small model with the masked original."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from surgeon.dispatch import ASIDES, SIZE_QUERIES, intercept, op_name, unfused
from surgeon.errors import VerificationError
from surgeon.modules import Model, as_arguments, bare, entering, evaluating, tensors_in, untouched
from surgeon.operate.select import shrunk
from surgeon.plan.plan import Plan
from surgeon.progress import working
from surgeon.verify.count import Count, count_flops
from surgeon.verify.reference import Statistics, masked_state

# Largest difference allowed, relative to the largest output, by the narrowest float the forward pass computes in.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Proof:
    """What was checked and how close it came.

    difference   largest absolute difference of outputs, relative to the largest absolute output
    tolerance    what was allowed
    dtype        the narrowest float that the compared forward passes computed in
    flops        multiply-adds: (predicted before, predicted after, fvcore before, fvcore after)
    params       (predicted after, counted after)
    uncounted    ops that fvcore does not count in the small model

    Examples
    --------
    >>> proof = surgeon.verify(model, small, plan, x)
    >>> assert proof.difference <= proof.tolerance
    """

    difference: float
    tolerance: float
    dtype: str
    flops: tuple[float, float, float, float]
    params: tuple[int, int]
    uncounted: Mapping[str, int]
    note: str = ""

    def __str__(self) -> str:
        flops = f"FLOPs {self.flops[1]:.6g} predicted, {self.flops[3]:.6g} by fvcore (multiply-adds)"
        note = f"; {self.note}" if self.note else ""
        close = f"to {self.difference:.1e} of the output in {self.dtype} (allowed {self.tolerance:.0e})"
        return f"masked original = small model {close}; {flops}{note}"


@working("proving")
def verify(
    model: Model,
    small: Model,
    plan: Plan,
    example_inputs: Any,
    *,
    counts: tuple[Count, Count] | None = None,
) -> Proof:
    """Prove that the small model computes what the masked original computes.

    The original runs with every removed weight zero and every norm, mean and softmax over the survivors. Both run in
    float64 where the model allows it, in eval mode, on the example inputs. The parameters have to agree with the
    plan's prediction; fvcore's count of FLOPs stands beside it in the proof.

    Raises
    ------
    VerificationError naming the first op where the two part, or saying that there is nothing to compare.

    Examples
    --------
    >>> small = surgeon.operate(model, plan)
    >>> print(surgeon.verify(model, small, plan, x))
    """
    model, small = bare(model), bare(small)
    _check_weights(model, small, plan)
    state, own = _state(model), _state(small)
    with entering(plan.method, model, small):
        difference, dtype, note = _difference(model, small, plan, example_inputs, state, own)
        why = "the outputs are empty" if difference is None else _silent(model, plan, example_inputs, state)
        if why:
            # Any cut would pass where nothing that is cut can be heard: prove it on other weights too.
            state = _jittered(state)
            other, dtype, note = _difference(model, small, plan, example_inputs, state, _cut_state(state, own, plan))
            if difference is None and other is None:
                raise VerificationError(
                    "the outputs are empty on the example inputs, so nothing can be proved; give inputs on which the "
                    "model finds something"
                )
            difference = max(found for found in (difference, other) if found is not None)
            note += f"proved on perturbed weights too, since {why}"
    before, after = counts or tuple(count_flops(m, example_inputs, method=plan.method) for m in (model, small))
    predicted = plan.totals["flops"]
    params = sum(p.numel() for p in small.parameters())
    if params != round(plan.totals["params"][1]):
        raise VerificationError(
            f"the plan predicts {plan.totals['params'][1]:.0f} parameters, the small model has {params}"
        )
    note = "; ".join(filter(None, [note, after.failed]))
    return Proof(
        difference or 0.0,
        TOLERANCE[dtype],
        str(dtype).removeprefix("torch."),
        (predicted[0], predicted[1], before.total, after.total),
        (round(plan.totals["params"][1]), params),
        after.uncounted,
        note,
    )


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _check_weights(model: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Shapes are as planned, and what is not cut has its old shape."""
    old, new = _state(model), _state(small)
    for name, tensor in new.items():
        cut = plan.cuts.get(name)
        shape = tuple(cut.new_shape) if cut else tuple(old[name].shape) if name in old else None
        if shape != tuple(tensor.shape):
            raise VerificationError(f"{name} is {list(tensor.shape)} in the small model, the plan says {shape}")


def _difference(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    example_inputs: Any,
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
) -> tuple[float | None, torch.dtype, str]:
    """Run both and return the relative difference, in float64 unless the forward pass insists on less.

    It is None where all outputs are empty.
    """
    note = ""
    try:
        expected, found, dtype = _run_both(model, small, plan, example_inputs, state, own, torch.float64)
    except VerificationError:
        raise
    except Exception:
        try:
            expected, found, dtype = _run_both(model, small, plan, example_inputs, state, own, None)
        except VerificationError:
            raise
        except Exception as error:
            raise VerificationError(f"the small model does not run: {type(error).__name__}: {error}") from error
        note = "the model does not run in float64; "
    difference = _relative(expected, found)
    if difference is not None and not difference <= TOLERANCE[dtype]:
        where = _first_parting(model, small, plan, example_inputs, state, own, dtype)
        raise VerificationError(
            f"the small model differs from the masked original by {difference:.3g} of the largest output "
            f"(allowed {TOLERANCE[dtype]:.0e} in {dtype}); {where}"
        )
    return difference, dtype, note


def _run_both(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    example_inputs: Any,
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    watch: tuple[Any, Any] | None = None,
) -> tuple[list[Tensor], list[Tensor], torch.dtype]:
    statistics = Statistics(plan)
    args, kwargs = as_arguments(_cast(example_inputs, dtype))
    # Recurrent layers keep lists of their weights, which would go on to hold those of this run.
    with torch.no_grad(), untouched(model), untouched(small), evaluating(model, small):
        masked = masked_state({k: _cast(v, dtype) for k, v in state.items()}, plan)
        with intercept(_watched(statistics, watch[0]) if watch else statistics):
            expected = tensors_in(functional_call(model, masked, args, kwargs))
        del masked
        mine = {k: _cast(v, dtype) for k, v in own.items()}
        mine.update(_unrounded(state, own, plan) if dtype == torch.float64 else {})
        # Unwatched, an exported program runs the very operators that it holds.
        with intercept(_watched(lambda f, a, k: f(*a, **k), watch[1])) if watch else unfused():
            found = tensors_in(functional_call(small, mine, args, kwargs))
    return expected, found, statistics.dtype


def _watched(call: Callable[..., Any], seen: Any) -> Callable[..., Any]:
    def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = call(func, args, kwargs)
        name = op_name(func)
        if seen is not None and name not in SIZE_QUERIES | ASIDES:
            seen.append((name, [t.detach().clone() for t in tensors_in(result)]))
        return result

    return run


def _cast(tree: Any, dtype: torch.dtype | None) -> Any:
    if dtype is None:
        return tree
    if isinstance(tree, Tensor):
        return tree.detach().to(dtype) if tree.is_floating_point() else tree
    if isinstance(tree, Mapping):
        return {k: _cast(v, dtype) for k, v in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(_cast(v, dtype) for v in tree)
    return tree


def _relative(expected: list[Tensor], found: list[Tensor]) -> float | None:
    if len(expected) != len(found) or any(a.shape != b.shape for a, b in zip(expected, found)):
        shapes = [[list(t.shape) for t in side] for side in (expected, found)]
        raise VerificationError(f"outputs have other shapes: {shapes[0]} before, {shapes[1]} after")
    worst = 0.0
    compared = [(a, b) for a, b in zip(expected, found) if a.numel()]
    for a, b in compared:
        finite = torch.isfinite(a)
        if not torch.equal(finite, torch.isfinite(b)):
            return float("inf")
        if not finite.any():
            raise VerificationError(
                "the outputs are not finite on the example inputs, so nothing can be proved; check weights and inputs"
            )
        a, b = (torch.where(finite, t, torch.zeros_like(t)).double() for t in (a, b))
        worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)))
    return worst if compared or not expected else None


# -- zero weights ------------------------------------------------------------------------------------


def _silent(model: nn.Module, plan: Plan, example_inputs: Any, state: Mapping[str, Tensor]) -> str:
    """Say why the outputs would hardly show a wrong cut: weights of zero, or outputs that ignore what goes."""
    if not plan.cuts:
        return ""
    weights = [name for name, _ in model.named_parameters() if name in plan.cuts and not name.endswith("bias")]
    if any(not bool(state[name].any()) for name in weights):
        return "some weights that are cut are zero throughout"
    args, kwargs = as_arguments(example_inputs)
    with torch.no_grad(), untouched(model), evaluating(model):
        whole = tensors_in(model(*args, **kwargs))
        masked = tensors_in(functional_call(model, masked_state(state, plan), args, kwargs))
    floats = [(a, b) for a, b in zip(whole, masked) if a.is_floating_point()]
    if len(whole) != len(masked) or any(a.shape != b.shape for a, b in floats):
        return ""  # how many results there are depends on the data, and so on what is cut
    heard = max((_change(a, b) for a, b in floats if a.numel()), default=0.0)
    return "" if heard > 1e-4 else "the outputs hardly depend on what is cut"


def _change(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-12))


def _jittered(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return random weights of the same shapes, with signals of moderate size: fan-in scaled, offsets positive."""
    generator = torch.Generator().manual_seed(0)

    def jitter(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dim() == 0:
            return tensor
        noise = torch.rand(tensor.shape, generator=generator).to(tensor)
        if tensor.dim() == 1:
            return noise + 0.5
        return (noise - 0.5) * (12 / tensor[0].numel()) ** 0.5

    return {name: jitter(tensor) for name, tensor in state.items()}


def _cut_state(state: Mapping[str, Tensor], own: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """Return what the small model's tensors would be for other weights."""
    return {name: shrunk(state[name], plan, name) if name in plan.cuts else state[name] for name in own}


def _unrounded(state: Mapping[str, Tensor], own: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """Return the small model's scaled parameters before they were rounded to their own precision.

    Where they are what the plan says but for that rounding; others are left to show their difference.
    """
    exact = {}
    for name in {scale.parameter for scale in plan.scales} & set(own):
        wide = shrunk(state[name].detach().double(), plan, name)
        slack = 4 * torch.finfo(own[name].dtype).eps
        if torch.allclose(own[name].detach().double(), wide, rtol=slack, atol=0):
            exact[name] = wide
    return exact


# -- where the two part ------------------------------------------------------------------------------


def _first_parting(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    example_inputs: Any,
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> str:
    """Name the first op whose small result is no part of the original's."""
    ours: list[tuple[str, list[Tensor]]] = []
    theirs: list[tuple[str, list[Tensor]]] = []
    wide = torch.float64 if dtype == torch.float64 else None
    _run_both(model, small, plan, example_inputs, state, own, wide, watch=(ours, theirs))
    for at, ((name, before), (other, after)) in enumerate(zip(ours, theirs)):
        if name != other:
            return f"from call {at} on, the two take different paths: {name} and {other}"
        if any(not _part_of(b, a, TOLERANCE[dtype]) for a, b in zip(before, after)):
            return f"they part at call {at}, {name}, {list(before[0].shape)} before and {list(after[0].shape)} after"
    return "no single op shows where they part"


def _part_of(part: Tensor, whole: Tensor, tolerance: float) -> bool:
    """Tell whether a tensor is what is left of another when slices along one dimension go."""
    if part.dim() != whole.dim() or not part.is_floating_point():
        return True
    shrunk = [d for d in range(part.dim()) if part.shape[d] != whole.shape[d]]
    scale = tolerance * max(1e-12, float(whole.abs().max())) if whole.numel() else 0.0
    if not shrunk:
        return bool(((part - whole).abs() <= scale).all())
    if len(shrunk) > 1:
        return True
    slices = iter(whole.unbind(shrunk[0]))
    return all(any(bool(((p - w).abs() <= scale).all()) for w in slices) for p in part.unbind(shrunk[0]))
