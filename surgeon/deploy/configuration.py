"""Write widths into the configuration of a Hugging Face model, where a configuration can say them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.deploy.tensors import named_tensors, transient_names
from surgeon.modules import holder
from surgeon.plan.plan import Plan

# A field of a configuration: names that lead to it, and the item where it is a list.
Field = tuple[tuple[str, ...], int | None]

# How often the class is built on ``meta``, at most, in search of fields that give the widths.
MOST = 400


def original_configuration(small: Any, plan: Plan) -> Any:
    """Return a copy of a cut model's configuration as it was before the cut."""
    before = copy.deepcopy(small.config)
    paths = {id(vars(held)): path for path, held in _parts(small.config)}
    modules = dict(small.named_modules(remove_duplicate=False))
    for edit in plan.edits:
        held, key = holder(modules[edit.owner], edit.name)
        if id(held) in paths:
            _set(before, ((*paths[id(held)], key), edit.index), edit.old)
    return before


def fitting_configuration(small: Any, plan: Plan) -> tuple[Any, str]:
    """Return a model that a configuration alone makes and that equals a cut one, or None and the reason.

    Integers of the configuration are tried as they were and in the proportions in which widths shrank, until the class
    built on ``meta`` has every shape and every size of the cut model. Then everything else that it computes from widths
    has to agree as well: scales of attention, tables of positions.
    """
    config = original_configuration(small, plan)
    target = _facts(small)
    best, wrong = config, _mismatches(small, config, target)
    fields, ratios = list(_integers(config)), _ratios(plan)
    tries = 0
    while wrong:
        better = None
        for field in fields:
            for value in _candidates(_get(best, field), ratios):
                tries += 1
                trial = copy.deepcopy(best)
                _set(trial, field, value)
                count = _mismatches(small, trial, target)
                if tries <= MOST and count is not None and (wrong is None or count < wrong):
                    better, wrong = trial, count
        if better is None:
            return None, _reason(small, best, target)
        best = better
    return _equal_model(small, best)


def _ratios(plan: Plan) -> set[tuple[int, int]]:
    """Return (old, new) of all sizes that change."""
    found = {(old, new) for cut in plan.cuts.values() for old, new in zip(cut.shape, cut.new_shape) if old != new}
    return found | {(edit.old, edit.new) for edit in plan.edits if edit.old > 0}


def _candidates(value: int, ratios: set[tuple[int, int]]) -> list[int]:
    scaled = {value * new // old for old, new in ratios if value * new % old == 0}
    return sorted(scaled - {value, 0}, reverse=True)


def _parts(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield a configuration and those inside it."""
    yield path, config
    for name, value in vars(config).items():
        if isinstance(value, type(config).__mro__[-2]) or type(value).__name__.endswith("Config"):
            yield from _parts(value, (*path, name))


def _integers(config: Any) -> Iterator[Field]:
    for path, held in _parts(config):
        for name, value in vars(held).items():
            if type(value) is int and value > 0 and not name.startswith("_"):
                yield (*path, name), None
            if isinstance(value, (list, tuple)):
                yield from (((*path, name), i) for i, item in enumerate(value) if type(item) is int and item > 0)


def _held(config: Any, field: Field) -> tuple[dict[str, Any], str]:
    (*path, name), _ = field
    for part in path:
        config = vars(config)[part]
    return vars(config), name


def _get(config: Any, field: Field) -> int:
    held, name = _held(config, field)
    value = held[name] if field[1] is None else held[name][field[1]]
    return int(value)


def _set(config: Any, field: Field, value: int) -> None:
    held, name = _held(config, field)
    if field[1] is None:
        held[name] = value
        return
    items = list(held[name])
    items[field[1]] = value
    held[name] = type(held[name])(items)


def _facts(model: nn.Module) -> dict[str, Any]:
    """Return the shapes of a model, and the integers that its modules hold."""
    facts: dict[str, Any] = {f"tensor {name}": tuple(t.shape) for name, t in named_tensors(model).items()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if type(value) is int or (type(value) in (tuple, list) and all(type(item) is int for item in value)):
                facts[f"{path}.{name}"] = value
    return facts


def _built(kind: Any, config: Any) -> Any:
    """Return a model of a class on ``meta``, None where its constructor refuses."""
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            return kind(copy.deepcopy(config))
    except Exception:
        return None


def _mismatches(small: Any, config: Any, target: dict[str, Any]) -> int | None:
    """Return how many facts differ between a cut model and one that a configuration makes; None for none made."""
    model = _built(type(small), config)
    if model is None:
        return None
    facts = _facts(model)
    return sum(facts.get(key) != target.get(key) for key in facts.keys() | target.keys())


def _reason(small: Any, config: Any, target: dict[str, Any]) -> str:
    model = _built(type(small), config)
    facts = _facts(model) if model is not None else {}
    differing = sorted(key for key in facts.keys() | target.keys() if facts.get(key) != target.get(key))
    key = next((k for k in differing if k.startswith("tensor ")), differing[0])
    return (
        f"no configuration gives its widths: {key.removeprefix('tensor ')} is {target.get(key)}, and {facts.get(key)} "
        "at best; uniform=True makes layers of a kind equal, heads=True keeps the width of heads"
    )


def _equal_model(small: Any, config: Any) -> tuple[Any, str]:
    """Build a model with values, give it the cut model's tensors, and hold everything else against the cut one."""
    with torch.random.fork_rng(devices=[]):
        model = type(small)(copy.deepcopy(config))
    model.train(small.training)
    mine, other = named_tensors(small), named_tensors(model)
    kept = transient_names(model)
    for name, tensor in other.items():
        if name not in kept:
            tensor.data = mine[name].detach()
        elif not _same(tensor, mine[name]):
            return None, f"{name} of the cut model is not what its configuration computes"
    for (path, module), (_, twin) in zip(small.named_modules(), model.named_modules()):
        for name, value in vars(module).items():
            here = vars(twin).get(name, value)
            if type(value) in (int, float, bool, str) and not name.startswith("_") and here != value:
                return None, f"{path}.{name} is {value} in the cut model, and {here} in one of its configuration"
    if getattr(small, "generation_config", None) is not None:
        model.generation_config = copy.deepcopy(small.generation_config)
    return model, ""


def _same(computed: Tensor, held: Tensor) -> bool:
    return computed.shape == held.shape and torch.equal(computed.to(held), held)
