"""An exported program as a module: its tensors under their own names, its sizes as attributes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from surgeon.aten import schema_name
from surgeon.errors import SurgeonError, TraceError, UnsupportedModel
from surgeon.exported.inline import inlined
from surgeon.exported.listing import CHECKS, Listing, Location, Ref, Slot, Step, listing, mapped


class Scope(nn.Module):
    """A module of the exported model: the tensors that it owned, and the sizes of the steps that it ran."""

    def forward(self, step: Step, values: dict[str, Any]) -> Any:
        return run(self, step, values)


def run(holder: nn.Module, step: Step, values: dict[str, Any]) -> Any:
    """Run a step with the sizes that a module holds for it."""
    if isinstance(step.target, OpOverload) and schema_name(step.target) in CHECKS:
        return None
    args, kwargs = filled(step, getattr(holder, step.attribute, ()), values)
    return step.target(*args, **kwargs)


def filled(step: Step, sizes: Any, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a step, given its sizes and the results of others."""

    def fill(leaf: Any) -> Any:
        if isinstance(leaf, Slot):
            return sizes[leaf.index]
        return values[leaf.name] if isinstance(leaf, Ref) else leaf

    return mapped(step.args, fill), mapped(step.kwargs, fill)


class Program(nn.Module):
    """An ``ExportedProgram`` that can be recorded, cut and run like any module.

    Parameters, buffers and constants have the program's names. Every constant of the graph that may be a size is an
    item of an attribute named after its node, ``blocks.0.attn.%view_2[3]``, so that a cut sets it as it sets any
    attribute.
    """

    _listing: Listing

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        program = inlined(program)
        self._listing = listing(program)
        self._build(program)

    def _build(self, program: ExportedProgram) -> None:
        for path in self._listing.scopes:
            self._scope(path)
        persistent = {s.target for s in program.graph_signature.input_specs if s.persistent}
        tied: dict[Any, Tensor] = {}
        for name, tensor in _tensors(program, self._listing.state.values()):
            owner, _, leaf = name.rpartition(".")
            tensor = tied.setdefault(_identity(tensor), tensor)
            if isinstance(tensor, nn.Parameter):
                self._scope(owner).register_parameter(leaf, tensor)
            else:
                self._scope(owner).register_buffer(leaf, tensor, persistent=name in persistent)
        for step in self._listing.steps:
            if step.sizes:
                setattr(self._scope(step.scope), step.attribute, step.sizes)
        self.eval()

    def _scope(self, path: str) -> nn.Module:
        """Return the module at a path, made where it is missing."""
        scope: nn.Module = self
        for name in filter(None, path.split(".")):
            if name not in scope._modules:
                scope.add_module(name, Scope())
            scope = scope.get_submodule(name)
        return scope

    @property
    def fixed(self) -> bool:
        """Whether the program was exported for one batch size."""
        return any(shape[0] is not None for shape in self._listing.inputs.values() if shape)

    def source_location(self) -> Location:
        """Return the source line that the current step was exported from."""
        return self._listing.at

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        plan = self._listing
        values: dict[str, Any] = {node: _owned(self, name) for node, name in plan.state.items()}
        values.update(zip(plan.inputs, _flat_inputs(plan, args, kwargs), strict=True))
        scopes = {path: self.get_submodule(path) for path in plan.scopes}
        for step in plan.steps:
            plan.at = step.location
            values[step.name] = self._result(step, scopes[step.scope], values)
            for name in step.done:
                del values[name]
        flat = mapped(plan.output, lambda leaf: values[leaf.name] if isinstance(leaf, Ref) else leaf)
        return pytree.tree_unflatten(list(flat), plan.program.call_spec.out_spec)

    def _result(self, step: Step, scope: nn.Module, values: dict[str, Any]) -> Any:
        try:
            return run(self, step, values) if scope is self else scope(step, values)
        except SurgeonError:
            raise
        except Exception as error:
            args, kwargs = filled(step, getattr(scope, step.attribute, ()), values)
            shapes = [list(t.shape) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            raise TraceError(
                f"{step} failed: {type(error).__name__}: {error}; its tensors have shapes {shapes}; "
                "check that program.module()(*example_inputs) runs"
            ) from error


def _owned(module: nn.Module, name: str) -> Any:
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def _tensors(program: ExportedProgram, names: Iterable[str]) -> Iterable[tuple[str, Tensor]]:
    """Yield every tensor that the program holds, under all its names."""
    held = {**program.constants, **program.state_dict}
    for name in dict.fromkeys((*program.state_dict, *names)):
        if not isinstance(held.get(name), Tensor):
            raise UnsupportedModel(f"the program takes {name!r}, and holds no tensor of that name; export it again")
        yield name, held[name]


def _identity(tensor: Tensor) -> Any:
    """Tied tensors are the same object, or after loading, the same view of the same memory."""
    if tensor.device.type == "meta" or not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), type(tensor)


def _flat_inputs(plan: Listing, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return what the user gave in the order of the graph's inputs."""
    wanted = plan.program.call_spec.in_spec
    args, kwargs = _as_exported(plan.program, args, kwargs)
    flat, spec = pytree.tree_flatten((args, kwargs))
    if spec != wanted:
        raise TraceError(f"the program was exported for inputs of the form {wanted}; the example inputs are {spec}")
    for (name, shape), given in zip(plan.inputs.items(), flat, strict=True):
        if shape is None or not isinstance(given, Tensor):
            continue
        if len(shape) != given.dim() or any(s not in (None, g) for s, g in zip(shape, given.shape)):
            free = [("any" if s is None else s) for s in shape]
            raise TraceError(
                f"input {name!r} has shape {list(given.shape)}, and the program was exported for {free}; "
                "give that shape, or export with dynamic_shapes"
            )
    return flat


def _as_exported(
    program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give by position what was exported by position, and by name, in its order, what was exported by name."""
    signature = program.module_call_graph[0].signature
    names = list(getattr(signature, "forward_arg_names", None) or [])
    wanted = pytree.tree_unflatten([0] * program.call_spec.in_spec.num_leaves, program.call_spec.in_spec)
    given = {**dict(zip(names, args)), **kwargs}
    count = len(wanted[0])
    if len(args) <= len(names) >= count and all(name in given for name in (*names[:count], *wanted[1])):
        surplus = {k: v for k, v in given.items() if k not in names[:count] and k not in wanted[1]}
        return tuple(given[name] for name in names[:count]), {k: given[k] for k in wanted[1]} | surplus
    return args, kwargs


def load(path: str | os.PathLike[str]) -> ExportedProgram:
    """Read a ``.pt2`` file.

    Raises UnsupportedModel where it is missing or was not written by ``torch.export.save``.
    """
    try:
        return torch.export.load(os.fspath(path))
    except Exception as error:
        raise UnsupportedModel(
            f"{os.fspath(path)!r} can't be read as an exported program ({type(error).__name__}: {error}); "
            "give a file written by torch.export.save"
        ) from error
