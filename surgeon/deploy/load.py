"""Build the original class, cut it, and fill it with the tensors of a file; nothing is unpickled."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.deploy.tensors import TAKE_BIAS, holders, laid_out, unregistered
from surgeon.deploy.weights import Contents
from surgeon.errors import FileError, SurgeonError, UnsupportedModel
from surgeon.modules import bare, named_tensors
from surgeon.operate import operate
from surgeon.plan.plan import Plan


def rebuilt(source: Callable[[], Any] | nn.Module, plan: Plan, brought: Container[str]) -> nn.Module:
    """Return the model of a factory, or a copy of one, cut; on ``meta`` where a file brings all of its tensors.

    Raises
    ------
    PlanMismatch for another architecture, UnsupportedModel for a factory that fails.
    """
    if isinstance(source, nn.Module):
        return operate(source, plan)
    if not callable(source):
        raise UnsupportedModel(
            f"expected a function that makes the original model, or the model itself, got {type(source).__name__}"
        )
    light = _on_meta(source, brought)
    if light is not None:
        return operate(light, plan, inplace=True)
    with torch.random.fork_rng(devices=[]):
        try:
            model = source()
        except SurgeonError:
            raise
        except Exception as error:
            raise UnsupportedModel(f"the factory failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"the factory returned {type(model).__name__}, no torch.nn.Module")
    return operate(model, plan)  # a copy: what a factory returns need not be new


def _on_meta(factory: Callable[[], Any], brought: Container[str]) -> nn.Module | None:
    """Build a model without memory; None where it needs values, or holds tensors that no file will bring."""
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            model = bare(factory())
            named = named_tensors(model)
            ready = any(tensor.is_meta for tensor in named.values()) and all(name in brought for name in named)
            held = not ready or any(tensor.is_meta for tensor in unregistered(model))
    except Exception:
        return None  # it will say what is wrong when it is built with values, if that fails as well
    return None if held else model


def filled(model: nn.Module, contents: Contents, stored: Mapping[str, Any], read: Callable[[Any], Any]) -> nn.Module:
    """Give a cut model the tensors of a file.

    Parameters
    ----------
    stored : the names in the file, and what is known of them: ``dtype``, ``shape``
    read : returns tensors for names

    Raises
    ------
    FileError where names, shapes or types disagree; the model is not to be used then.
    """
    _add_biases(model, contents)
    found = named_tensors(model)
    sources = _sources(found, contents, stored)
    tensors = read(dict.fromkeys(sources.values()))
    _check(found, sources, tensors)
    new: dict[str, Tensor] = {}
    places: dict[int, Tensor] = {}
    for name, key in sources.items():
        if key not in new:
            new[key] = _put(found[name], laid_out(tensors[key], contents.layouts.get(key)))
        places[id(found[name])] = new[key]
    for _, registry, key in holders(model):
        registry[key] = places.get(id(registry[key]), registry[key])
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
    return model


def _add_biases(model: nn.Module, contents: Contents) -> None:
    """Make room for biases that compensation gave to layers without one."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in contents.added:
        owner, _, leaf = name.rpartition(".")
        layer: Any = modules.get(owner)
        if leaf != "bias" or not isinstance(layer, TAKE_BIAS) or layer._parameters.get("bias", layer) is not None:
            raise FileError(f"the file has {name!r:.80}, and the model has no layer there that lacks a bias")
        width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        bias = torch.empty(width, dtype=layer.weight.dtype, device=layer.weight.device)
        layer.register_parameter("bias", nn.Parameter(bias, requires_grad=layer.weight.requires_grad))


def _sources(found: Mapping[str, Tensor], contents: Contents, stored: Mapping[str, Any]) -> dict[str, str]:
    """Return which tensor of the file each name of the model stands for.

    Buffers that no state dict holds may be missing: they are as the factory made them, and cut.
    """
    sources: dict[str, str] = {}
    by_tensor: dict[int, str] = {}
    for name, tensor in found.items():
        key = name if name in stored else contents.tied.get(name, "")
        if key not in stored:
            continue
        sources[name] = key
        by_tensor.setdefault(id(tensor), key)
    for name in found.keys() - sources.keys():
        if id(found[name]) in by_tensor:
            sources[name] = by_tensor[id(found[name])]
        elif name not in contents.plan.transient or found[name].is_meta:
            raise FileError(f"the file has no tensor for {name!r} of the model; is it of another version of the class?")
    extra = sorted(stored.keys() - sources.values())
    if extra:
        raise FileError(f"the file has {extra[0]!r:.80}, which the model has not; is it of another version of it?")
    return sources


def _check(found: Mapping[str, Tensor], sources: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Refuse other shapes and types, and what is one tensor in the model and two different ones in the file."""
    first: dict[int, str] = {}
    for name, key in sources.items():
        tensor, value = found[name], tensors[key]
        if tensor.shape != value.shape:
            raise FileError(f"{name} is {list(value.shape)} in the file, {list(tensor.shape)} in the model")
        # A model may have been cast, so floats of any width fit; anything else means another kind of tensor.
        if tensor.dtype != value.dtype and not (tensor.is_floating_point() and value.is_floating_point()):
            raise FileError(f"{name} is {value.dtype} in the file, {tensor.dtype} in the model")
        twin = first.setdefault(id(tensor), key)
        if twin != key and not torch.equal(tensors[twin], value):
            raise FileError(f"{key} and {twin} are one tensor in the model, and two different ones in the file")


def _put(tensor: Tensor, value: Tensor) -> Tensor:
    """Return a tensor of the model with the file's values: the same object, unless it was on ``meta``."""
    if not tensor.is_meta:
        tensor.data = value.to(tensor.device)
        return tensor
    new = type(tensor)(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    for key, attribute in vars(tensor).items():
        setattr(new, key, attribute)
    return new
