"""Put a program together from a new graph and the parts of an old one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx
from torch.export import ExportedProgram, ModuleCallEntry


def copied_graph(program: ExportedProgram) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """Copy a program's graph under the same names; returns it with its nodes by name."""
    graph = fx.Graph()
    twins: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(program.graph, twins)
    last = next(n for n in program.graph.nodes if n.op == "output")
    graph.output(output).meta = copy.copy(last.meta)
    for old, new in twins.items():
        new.name = old.name
    return graph, {old.name: new for old, new in twins.items()}


def assembled(
    program: ExportedProgram,
    graph_module: fx.GraphModule,
    signature: Any = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> ExportedProgram:
    """Return a program with another graph, and other tensors where they are given by name."""
    tensors = tensors or {}
    graph_module.meta.update(program.graph_module.meta)
    return ExportedProgram(
        root=graph_module,
        graph=graph_module.graph,
        graph_signature=signature or copy.deepcopy(program.graph_signature),
        state_dict={name: tensors.get(name, held) for name, held in program.state_dict.items()},
        range_constraints=dict(program.range_constraints),
        module_call_graph=[_copied(entry) for entry in program.module_call_graph],
        example_inputs=program.example_inputs,
        constants={name: tensors.get(name, held) for name, held in program.constants.items()},
        verifiers=program.verifiers,
    )


def _copied(entry: ModuleCallEntry) -> ModuleCallEntry:
    """Copy an entry down to its arguments, which the new program may rename; input and output forms never change."""
    signature = entry.signature
    if signature is None:
        return copy.copy(entry)
    inputs, outputs = (copy.deepcopy(arguments) for arguments in (signature.inputs, signature.outputs))
    return dataclasses.replace(entry, signature=dataclasses.replace(signature, inputs=inputs, outputs=outputs))
