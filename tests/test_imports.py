"""Imports point one way, and the public names are these."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

import surgeon

ROOT = Path(surgeon.__file__).parent

# From the bottom up. A package imports from lower layers, and from its own without a cycle.
LAYERS = (
    {"errors", "files", "aten", "dispatch", "exported", "modules", "evaluation", "progress", "marks"},
    {"calibrate"},
    {"trace"},
    {"labels"},
    {"counts", "groups"},
    {"drawing"},
    {"graph"},
    {"score", "plan", "operate", "verify", "recover", "report", "deploy", "guard"},
    {"latency", "schedule", "finetune", "regularize"},
    {"comparison", "dissect"},
    {"api"},
    {"convert", "sensitivity", "pruner"},
    {"cli", "integrations"},
    {"__main__"},
)
LAYER_OF = {package: i for i, layer in enumerate(LAYERS) for package in layer}

# What reads a plan needs nothing of what made it.
AFTER_THE_PLAN = ("operate", "verify", "recover", "report", "deploy")
BEFORE_THE_PLAN = {"trace", "labels", "counts", "groups", "graph", "score"}


def sources() -> list[Path]:
    """Return the files of the package, without its ``__init__``, which imports everything that is public."""
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def package_of(path: Path) -> str:
    """Return the part of surgeon that a file belongs to: ``labels`` for ``surgeon/labels/rules/movement.py``."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def imported(path: Path) -> tuple[tuple[str, int], ...]:
    """Return the modules that a file imports when it runs, inside functions as well, each with its line."""
    return tuple(_imported(ast.parse(path.read_text(encoding="utf-8")), path))


def _imported(node: ast.AST, path: Path) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.If) and _for_types_only(node.test):
        for child in node.orelse:
            yield from _imported(child, path)
        return
    if isinstance(node, ast.Import):
        yield from ((alias.name, node.lineno) for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{path}:{node.lineno}: a relative import"
        # ``from surgeon import graph`` may name a module as well as something in one.
        yield node.module or "", node.lineno
        yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _imported(child, path)


def _for_types_only(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def edges() -> Iterator[tuple[str, str, str]]:
    """Yield (package, package that it imports, file and line)."""
    for path in sources():
        for module, line in imported(path):
            root, _, inside = module.partition(".")
            target = inside.partition(".")[0]
            if root == "surgeon" and target in LAYER_OF and target != package_of(path):
                yield package_of(path), target, f"{path.relative_to(ROOT.parent)}:{line}"


def test_every_package_has_a_layer() -> None:
    assert {package_of(path) for path in sources()} == LAYER_OF.keys()


def test_imports_go_down() -> None:
    upward = [
        f"{where}: {source} imports {target}"
        for source, target, where in edges()
        if LAYER_OF[source] < LAYER_OF[target]
    ]
    assert not upward


def test_no_cycles() -> None:
    graph = nx.DiGraph((source, target) for source, target, _ in edges())
    assert list(nx.simple_cycles(graph)) == []


def test_nothing_imports_the_public_names_from_inside() -> None:
    """``from surgeon import plan`` inside the package would hide which part is meant."""
    found = [f"{path.name}:{line}" for path in sources() for module, line in imported(path) if module == "surgeon"]
    assert not found


@pytest.mark.parametrize("package", AFTER_THE_PLAN)
def test_what_follows_the_plan_does_not_know_labels(package: str) -> None:
    graph = nx.DiGraph((source, target) for source, target, _ in edges())
    reached = nx.descendants(graph, package) if package in graph else set()
    assert not reached & BEFORE_THE_PLAN


def test_plans_need_no_torch() -> None:
    found = [
        f"{path.relative_to(ROOT.parent)}:{line}"
        for path in sources()
        if package_of(path) == "plan"
        for module, line in imported(path)
        if module.partition(".")[0] == "torch"
    ]
    assert not found


def test_types_only_imports_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(
        "import typing\n"
        "if typing.TYPE_CHECKING:\n"
        "    from surgeon.graph import Group\n"
        "else:\n"
        "    import a\n"
        "def f():\n"
        "    from surgeon.plan import plan\n"
    )
    assert imported(path) == (("typing", 1), ("a", 5), ("surgeon.plan", 7), ("surgeon.plan.plan", 7))


def test_public_names() -> None:
    assert surgeon.__all__ == [
        "Exported",
        "Finetuned",
        "Pareto",
        "Plan",
        "Proof",
        "Pruner",
        "Recovery",
        "Regularizer",
        "Report",
        "Result",
        "Sensitivity",
        "SurgeonError",
        "compare",
        "export",
        "finetune",
        "load",
        "migrate",
        "operate",
        "operate_file",
        "pareto",
        "plan",
        "plan_from_history",
        "plan_from_pair",
        "plan_from_zeros",
        "prune",
        "recover",
        "rewind",
        "rule",
        "save",
        "score",
        "sensitivity",
        "trace",
        "verify",
    ]


@pytest.mark.parametrize("name", surgeon.__all__)
def test_public_names_say_what_they_are(name: str) -> None:
    thing = getattr(surgeon, name)
    assert inspect.isclass(thing) or inspect.isfunction(thing)
    # A dataclass without a docstring of its own gets its signature for one.
    assert thing.__doc__ and not thing.__doc__.startswith(f"{name}(")
