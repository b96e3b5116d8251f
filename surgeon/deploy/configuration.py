"""Write widths into the configuration of a Hugging Face model, where a configuration can say them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.deploy.tensors import transient_names
from surgeon.modules import as_arguments, evaluating, holder, named_tensors, tensors_in, untouched
from surgeon.plan.plan import Plan

# A field of a configuration: names that lead to it, and the item where it is a list.
Field = tuple[tuple[str, ...], int | None]

# How often the class is built on ``meta``, at most, in search of fields that give the widths.
MOST = 400

# How many configurations of the right shapes are built and compared with the cut model.
CHOICES = 12


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


def fitting_configuration(small: Any, plan: Plan, example_inputs: Any = None) -> tuple[Any, str]:
    """Return a model that a configuration alone makes and that equals a cut one, or None and the reason.

    Integers of the configuration are tried as they were and in the proportions in which widths shrank, until the class
    built on ``meta`` has every shape of the cut model, and every size that the plan set. What else the class computes
    from widths, such as scales of attention and tables of positions, has to agree as well: attributes are compared,
    and where some differ, which a forward pass need not read, outputs are.
    """
    search = _Search(small, plan)
    best = original_configuration(small, plan)
    wrong = search.distance(best)
    fields, ratios = list(_integers(best)), _ratios(plan)
    for _ in fields:
        if wrong == _NONE:
            break
        closer = min(search.neighbours(best, fields, ratios), key=lambda found: found[0], default=(_FAR, best))
        if closer[0] >= wrong:
            break
        wrong, best = closer
    if wrong[0]:
        return None, search.reason(best)
    # Sizes that no forward pass reads are stale in the cut model: among those of the right shapes, outputs decide.
    fits = [(wrong, best), *(found for found in search.neighbours(best, fields, ratios) if not found[0][0])]
    reasons = []
    for _, config in sorted(fits, key=lambda found: found[0])[:CHOICES]:
        model, reason = _equal_model(small, config, example_inputs)
        if model is not None:
            return model, ""
        reasons.append(reason)
    return None, reasons[0]


# How far a configuration is from a cut model: shapes and set sizes that differ, and other sizes that do.
_NONE, _FAR = (0, 0), (10**9, 0)


class _Search:
    """Distances of configurations from a cut model."""

    def __init__(self, small: Any, plan: Plan) -> None:
        self.kind, self.target, self.tries = type(small), _facts(small), 0
        self.set = {f"{edit.owner}.{edit.name}" for edit in plan.edits}

    def distance(self, config: Any) -> tuple[int, int]:
        self.tries += 1
        model = _built(self.kind, config) if self.tries <= MOST else None
        if model is None:
            return _FAR
        facts = _facts(model)
        differ = [key for key in facts.keys() | self.target.keys() if facts.get(key) != self.target.get(key)]
        hard = sum(key.startswith("tensor ") or key in self.set for key in differ)
        return hard, len(differ) - hard

    def neighbours(
        self, config: Any, fields: list[Field], ratios: set[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], Any]]:
        """Yield configurations that differ in one field, with their distances."""
        for field in fields:
            for value in _candidates(_get(config, field), ratios):
                trial = copy.deepcopy(config)
                _set(trial, field, value)
                yield self.distance(trial), trial

    def reason(self, config: Any) -> str:
        model = _built(self.kind, config)
        facts = _facts(model) if model is not None else {}
        differ = sorted(key for key in facts.keys() | self.target.keys() if facts.get(key) != self.target.get(key))
        key = next((k for k in differ if k.startswith("tensor ")), differ[0])
        return (
            f"no configuration gives its widths: {key.removeprefix('tensor ')} is {self.target.get(key)}, and "
            f"{facts.get(key)} at best; uniform=True makes layers of a kind equal"
        )


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


def _equal_model(small: Any, config: Any, example_inputs: Any) -> tuple[Any, str]:
    """Build a model with values, give it the cut model's tensors, and hold everything else against the cut one."""
    refused = _refused(config)
    if refused:
        return None, refused
    with torch.random.fork_rng(devices=[]):
        model = type(small)(copy.deepcopy(config))
    model.train(small.training)
    mine, other = named_tensors(small), named_tensors(model)
    kept = transient_names(model)
    for name, tensor in other.items():
        if name not in kept:
            tensor.data = mine[name].detach()
        elif not _same(tensor, mine[name]):
            return None, f"{name}, {mine[name].dtype}, is not what its configuration computes, {tensor.dtype}"
    differing = _differing(small, model)
    if differing and not _alike(small, model, example_inputs):
        return None, differing
    if getattr(small, "generation_config", None) is not None:
        model.generation_config = copy.deepcopy(small.generation_config)
    return model, ""


def _refused(config: Any) -> str:
    """Say why transformers would not write a configuration, which its constructors may have taken all the same."""
    try:
        getattr(config, "validate", lambda: None)()
    except Exception as error:
        return f"transformers refuses a configuration of these widths: {error.__cause__ or error}"
    return ""


def _differing(small: Any, model: Any) -> str:
    """Name an attribute of the modules that differs."""
    for (path, module), (_, twin) in zip(small.named_modules(), model.named_modules()):
        for name, value in vars(module).items():
            here = vars(twin).get(name, value)
            if type(value) in (int, float, bool, str) and not name.startswith("_") and here != value:
                return f"{path}.{name} is {value} in the cut model, and {here} in one of its configuration"
    return ""


def _same(computed: Tensor, held: Tensor) -> bool:
    return computed.dtype == held.dtype and torch.equal(computed.to(held.device), held)


def _alike(small: Any, model: Any, example_inputs: Any) -> bool:
    """Tell whether two models give the same outputs, bit for bit; False where neither runs."""
    args, kwargs = as_arguments(_inputs(small) if example_inputs is None else example_inputs)
    try:
        with torch.no_grad(), untouched(small), untouched(model), evaluating(small, model):
            expected, found = ([*tensors_in(each(*args, **kwargs))] for each in (small, model))
    except Exception:
        return False
    return (
        len(expected) == len(found) > 0
        and all(torch.equal(a, b) for a, b in zip(expected, found))
        and any(bool(a.isfinite().any()) for a in expected)
    )


def _inputs(small: Any) -> dict[str, Any]:
    """Return inputs that most models of a kind take: tokens, or an image."""
    generator = torch.Generator().manual_seed(0)
    main = getattr(small, "main_input_name", "input_ids")
    vision = getattr(small.config, "vision_config", small.config)
    inputs: dict[str, Any] = {}
    if main == "pixel_values" or vision is not small.config:
        side = getattr(vision, "image_size", 64)
        sides = tuple(side) if isinstance(side, (tuple, list)) else (side, side)
        shape = (1, getattr(vision, "num_channels", 3), *sides)
        inputs["pixel_values"] = torch.randn(shape, generator=generator).to(small.dtype)
    if main == "input_ids" or vision is not small.config:
        text = getattr(small.config, "text_config", small.config)
        tokens = torch.randint(2, max(3, getattr(text, "vocab_size", 3)), (1, 8), generator=generator)
        inputs["input_ids"] = tokens
        if getattr(small.config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = tokens[:, :5]
    return {name: tensor.to(small.device) for name, tensor in inputs.items()}
