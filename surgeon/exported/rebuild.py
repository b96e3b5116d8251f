"""Make an exported program of a module that was cut."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from surgeon.aten import schema_name
from surgeon.errors import SurgeonError
from surgeon.exported.assemble import assembled, copied_graph
from surgeon.exported.listing import Step
from surgeon.exported.program import Program, filled


def rebuild(module: Program) -> ExportedProgram:
    """Return the program that a module stands for: its tensors, its sizes, shapes computed anew.

    Graph, signature, dynamic shapes and metadata are otherwise those of the original program, which stays as it is.

    Raises
    ------
    SurgeonError, naming the node, where a size does not fit.
    """
    program = module._listing.program
    graph, nodes = copied_graph(program)
    for step in module._listing.steps:
        _write(nodes[step.name], step, module, nodes)
    graph_module = fx.GraphModule(program.graph_module, graph)
    _propagate(graph_module, module)
    return assembled(program, graph_module, tensors=_named(module))


def _named(module: nn.Module) -> dict[str, Tensor]:
    named: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    named.update(module.named_buffers(remove_duplicate=False))
    return named


def _write(node: fx.Node, step: Step, module: Program, nodes: Mapping[str, fx.Node]) -> None:
    """Put a step's sizes into its node."""
    if node.op != "call_function":
        return
    if isinstance(step.target, OpOverload) and schema_name(step.target) == "_assert_tensor_metadata":
        # Sizes and strides are those of the original; type and device still have to be right.
        node.args = (node.args[0], *[None for _ in node.args[1:3]], *node.args[3:])
        node.kwargs = {k: v for k, v in node.kwargs.items() if k not in ("size", "stride")}
        return
    sizes = getattr(module.get_submodule(step.scope), step.attribute, ())
    node.args, node.kwargs = filled(step, sizes, nodes)


class _Shapes(FakeTensorProp):
    """Shape propagation that says where it failed."""

    def __init__(self, graph_module: fx.GraphModule, mode: Any, steps: Mapping[str, Step]) -> None:
        super().__init__(graph_module, mode)
        self.steps = steps

    def run_node(self, node: fx.Node) -> Any:
        try:
            return super().run_node(node)
        except Exception as error:
            shapes = [list(n.meta["val"].shape) for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
            raise SurgeonError(
                f"{self.steps.get(node.name, node.name)} does not fit after the cut ({type(error).__name__}: {error}); "
                f"its tensors have shapes {shapes}, its arguments are {node.args[1:]}; keep the layers around it with "
                "keep=, and please report the program"
            ) from error


def _propagate(graph_module: fx.GraphModule, module: Program) -> None:
    """Compute the shape of every value anew, with the symbols of the original."""
    placeholders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    mode = detect_fake_mode([n.meta.get("val") for n in placeholders])
    if mode is None:
        raise SurgeonError("the program carries no shapes (meta['val']); export it again with torch.export.export")
    named = _named(module)
    state = module._listing.state
    values = [
        mode.from_tensor(named[state[n.name]], static_shapes=True) if n.name in state else n.meta.get("val")
        for n in placeholders
    ]
    quiet = mode.shape_env.suppress_guards() if mode.shape_env is not None else contextlib.nullcontext()
    steps = {step.name: step for step in module._listing.steps}
    with torch.no_grad(), quiet:
        _Shapes(graph_module, mode, steps).propagate_dont_convert_inputs(*values)
