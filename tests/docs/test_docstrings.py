"""Examples in docstrings of public names run, and the reference reads docstrings as they are written."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning
from safetensors.torch import save_file
from torch import nn

import surgeon


def documented() -> Iterator[tuple[str, Any]]:
    """Yield public functions and classes, and the methods of the latter, by their full names."""
    for name in surgeon.__all__:
        thing = getattr(surgeon, name)
        yield name, thing
        for inner, held in vars(thing).items() if inspect.isclass(thing) else ():
            function = getattr(held, "__func__", held.fget if isinstance(held, property) else held)
            if not inner.startswith("_") and inspect.isfunction(function):
                yield f"{name}.{inner}", function


EVERY = dict(documented())
WITH_EXAMPLES = [name for name, thing in EVERY.items() if ">>>" in (thing.__doc__ or "")]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(self.conv1(x).relu())


class Net(nn.Module):
    """What the examples call their model: names are those of a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.layer3 = nn.Sequential(Block(), Block())
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.adaptive_avg_pool2d(x, 8)
        return self.head(self.layer3(self.bn1(self.conv1(x)).relu()).mean((2, 3)))


def accuracy(model: nn.Module) -> float:
    return float(model(torch.ones(1, 3, 16, 16)).sum())


def loss(output: Any, target: Any) -> torch.Tensor:
    """Return the loss of outputs, or that of a model on a batch: examples have both."""
    if isinstance(output, nn.Module):
        images, target = target
        output = output(images)
    return nn.functional.cross_entropy(output, target)


class Tracker:
    """The two methods that reports need of the module ``mlflow``."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...

    def log_artifact(self, path: str) -> None: ...


def checkpoint(model: nn.Module) -> None:
    """Write the model's weights in two files."""
    state = model.state_dict()
    for number, names in enumerate((list(state)[:9], list(state)[9:])):
        save_file({name: state[name] for name in names}, f"model-{number}.safetensors")


def torch_pruned(original: nn.Module, x: torch.Tensor) -> tuple[nn.Module, Any]:
    """Return what torch-pruning makes of a model, and its pruner."""
    pruned = copy.deepcopy(original)
    importance = torch_pruning.importance.MagnitudeImportance()
    pruner = torch_pruning.pruner.MagnitudePruner(
        pruned, x, importance, pruning_ratio=0.5, ignored_layers=[pruned.head]
    )
    pruner.step()
    return pruned, pruner


def namespace(names: set[str]) -> dict[str, Any]:
    """Return what examples take for given, of these names."""
    model, x = Net().eval(), torch.randn(1, 3, 16, 16)
    checkpoint(model)
    result = surgeon.prune(model, x, flops=0.7)
    result.plan.save("reviewed.plan.json")
    surgeon.save(result.model, result.plan, "small.safetensors")
    graph = surgeon.trace(model, x)
    given: dict[str, Any] = {
        "accuracy": accuracy,
        "batches": [torch.randn(4, 3, 16, 16) for _ in range(2)],
        "batch": (torch.randn(4, 3, 16, 16), torch.arange(4)),
        "copy": copy,
        "graph": graph,
        "loader": [(torch.randn(4, 3, 16, 16), torch.arange(4)) for _ in range(2)],
        "loss": loss,
        "mlflow": Tracker(),
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters()),
        "original": model,
        # The same cuts in a plan that has made no model yet.
        "plan": dataclasses.replace(result.plan, settings={**result.plan.settings, "criterion": "reviewed"}),
        "resnet50": Net,
        "report": result.report,
        "result": result,
        "scores": surgeon.score(graph),
        "small": result.model,
        "surgeon": surgeon,
        "torch": torch,
        "train": lambda model: None,
        "x": x,
        "y": torch.tensor([3]),
    }
    if hasattr(surgeon, "schedule"):
        given["schedule"] = surgeon.schedule.gradual(flops=0.8, steps=4, every=2)
    if "SummaryWriter" in names:
        given["SummaryWriter"] = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    if names & {"pruned", "pruner"}:
        given["pruned"], given["pruner"] = torch_pruned(model, x)
    return given


@pytest.mark.filterwarnings("ignore")  # torch-pruning's, and those of exporters
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = "".join(each.source for each in doctest.DocTestParser().get_examples(inspect.getdoc(EVERY[name]) or ""))
    code = compile(source, f"<{name}>", "exec")
    exec(code, namespace(set(code.co_names)))


def test_everything_public_has_an_example() -> None:
    assert {name for name in surgeon.__all__ if name not in WITH_EXAMPLES} <= {"SurgeonError", "Report"}


# -- how the reference reads docstrings --------------------------------------------------------------

DOCSTRING = """Do it.

Longer, see docs/budgets.md.

name       what it is
long_name  another, over
           two lines

Parameters
----------
model : a module, or
    a path
a, b : two

Raises
------
BudgetError or ValueError

Examples
--------
>>> surgeon.prune(model)
"""

READ = """Do it.

Longer, see [budgets](../budgets.md).

- `name`: what it is
- `long_name`: another, over
    two lines

**Raises:** [BudgetError][surgeon.errors.BudgetError] or ValueError

Parameters
----------
model
    a module, or
    a path
a, b
    two

Examples
--------
>>> surgeon.prune(model)"""


def test_docstrings_are_read_into_the_convention_of_numpy() -> None:
    pytest.importorskip("griffe")
    path = Path(__file__).parents[2] / "docs" / "hooks" / "docstrings.py"
    spec = importlib.util.spec_from_file_location("docs_hooks_docstrings", path)
    assert spec is not None and spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    assert hook.rewritten(DOCSTRING) == READ
