"""Blocks of ``torch.no_grad`` inside a forward are programs within the program: put them into its graph."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from surgeon.exported.assemble import assembled, copied_graph


def _block(node: fx.Node) -> tuple[Any, tuple[Any, ...]] | None:
    """Return the node of the inner program and its operands, where a node runs one that computes what it says."""
    operators = torch.ops.higher_order
    if node.target is operators.wrap_with_set_grad_enabled:
        return node.args[1], node.args[2:]
    # With autocast off, a block computes in the types that it was given. With autocast on, it can't be taken apart.
    if node.target is operators.wrap_with_autocast and node.args[2] is False:
        return node.args[4], node.args[5:]
    return None


def inlined(program: ExportedProgram) -> ExportedProgram:
    """Return the program without blocks that only switch gradients, or autocast off; itself where there are none.

    Gradients then flow through what was a ``torch.no_grad`` block; outputs are the same.
    """
    if not any(_block(node) for node in program.graph.nodes):
        return program
    graph, _ = copied_graph(program)
    signature = copy.deepcopy(program.graph_signature)
    while blocks := [node for node in graph.nodes if _block(node)]:
        for node in blocks:
            _unfold(node, program.graph_module, graph, signature)
    return assembled(program, fx.GraphModule(program.graph_module, graph), signature)


def _unfold(node: fx.Node, root: fx.GraphModule, graph: fx.Graph, signature: Any) -> None:
    held, operands = _block(node) or (None, ())
    assert isinstance(held, fx.Node)
    inner: fx.Graph = root.get_submodule(str(held.target)).graph  # type: ignore[assignment]
    values = dict(zip((n for n in inner.nodes if n.op == "placeholder"), operands, strict=True))
    with graph.inserting_before(node):
        for part in inner.nodes:
            if part.op not in ("placeholder", "output"):
                values[part] = graph.node_copy(part, lambda n: values[n])
    results = next(n for n in inner.nodes if n.op == "output").args[0]
    for user in list(node.users):
        result = values[results[user.args[1]]]
        user.replace_all_uses_with(result)
        signature.replace_all_uses(user.name, result.name)
        graph.erase_node(user)
    graph.erase_node(node)
    if not held.users:
        graph.erase_node(held)
