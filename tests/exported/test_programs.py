"""Exported programs are cut, proved, saved and run like the modules that they were."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import surgeon
from surgeon.errors import SurgeonError, TraceError, UnsupportedModel
from tests.exported.programs import (
    Counter,
    LiteralViT,
    Tied,
    Two,
    Undisturbed,
    decomposed,
    exported,
    literal_vit,
    reloaded,
)
from tests.zoo import MODELS, build
from tests.zoo.networks import network
from tests.zoo.weights import randomize

HALF: dict[str, Any] = {"ratio": 0.5, "scope": "local", "criterion": "random"}
KINDS: dict[str, Callable[[ExportedProgram], ExportedProgram]] = {"exported": lambda p: p, "decomposed": decomposed}
each_kind = pytest.mark.parametrize("kind", KINDS)


def halved(program: Any, inputs: Any, **options: Any) -> surgeon.Result:
    """Cut half of every group at random, and insist on the proof."""
    result = surgeon.prune(program, inputs, **{**HALF, **options})
    assert isinstance(result.model, ExportedProgram)
    assert result.proof is not None and result.proof.dtype == "float64"
    assert result.proof.difference <= 1e-9
    assert result.proof.flops[1] == pytest.approx(result.proof.flops[3], rel=1e-6)
    return result


def parameters(program: ExportedProgram) -> int:
    return sum(p.numel() for p in {id(p): p for p in program.parameters()}.values())


# -- networks ----------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", pytest.param("densenet121", marks=pytest.mark.slow)]
)
def test_networks(name: str, kind: str, tmp_path: Path) -> None:
    model, x = network(name)
    program = KINDS[kind](exported(model, (x,)))
    result = halved(program, x)
    assert parameters(result.model) < 0.45 * parameters(program)
    again = reloaded(result.model, tmp_path / "small.pt2")
    assert torch.equal(again.module()(x), result.model.module()(x))


@each_kind
@pytest.mark.parametrize(
    "name", ["unet2d", "unet3d", "vit", "torch_encoder", "resnext", "glu", "masked_convs", "tied_lm"]
)
def test_architectures(name: str, kind: str) -> None:
    model, x = build(name)
    module, program = (
        surgeon.prune(model, x, **HALF),
        halved(KINDS[kind](exported(model, x if isinstance(x, tuple) else (x,))), x),
    )
    assert program.report.after.params <= module.report.after.params


@pytest.mark.slow
@each_kind
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"dataclass_output"}))  # torch.export knows no dataclasses
def test_the_zoo(name: str, kind: str) -> None:
    model, inputs = build(name)
    args, kwargs = (
        ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    )
    proof = surgeon.prune(KINDS[kind](exported(model, args, kwargs)), inputs, **HALF).proof
    assert proof is not None and proof.difference <= 1e-9
    assert proof.flops[1] == pytest.approx(proof.flops[3], rel=1e-6)


def test_layers_are_kept_by_name() -> None:
    model, x = literal_vit()
    plan = halved(exported(model, (x,)), x, keep=("attention.0.qkv", "mlps.*.0")).plan
    assert "attention.1.qkv.weight" in plan.cuts
    assert not {"attention.0.qkv.weight", "mlps.0.0.weight", "mlps.1.0.bias"} & plan.cuts.keys()


@each_kind
def test_the_same_cut_gives_the_same_outputs_as_the_module(kind: str) -> None:
    model, x = network("resnet18")
    options = {**HALF, "criterion": "l1"}
    small = surgeon.prune(model, x, **options).model
    program = halved(KINDS[kind](exported(model, (x,))), x, **options).model
    torch.testing.assert_close(program.module()(x), small(x), rtol=1e-9, atol=1e-9)


@each_kind
def test_literal_sizes_are_free(kind: str) -> None:
    """What a module pins for want of an attribute is a constant of the graph like any other."""
    model, x = literal_vit()
    module, program = surgeon.trace(model, x), surgeon.trace(KINDS[kind](exported(model, (x,))), x)
    pinned = {m.parameter for group in module.groups if group.pinned for m in group.members}
    assert {"patches.weight", "attention.0.qkv.weight", "attention.1.proj.weight"} <= pinned
    stuck = [group for group in program.groups if group.pinned and len(group.units) > 1]
    assert {m.parameter for group in stuck for m in group.members} == {"head.weight", "head.bias"}
    assert sum(g.size for g in program.free) > sum(g.size for g in module.free)
    cut, kept = (halved(KINDS[kind](exported(model, (x,))), x), surgeon.prune(model, x, **HALF))
    assert cut.report.after.params < 0.6 * kept.report.after.params


def test_attention_scores_keep_their_factor() -> None:
    """A module can't cut the width under an implicit square root; a program gets the old factor written out."""
    model, x = build("vit")
    program = exported(model, (x,))
    widths = [edit for edit in halved(program, x).plan.edits if edit.name.startswith("%reshape") and edit.old == 4]
    assert widths and all(edit.new == 2 for edit in widths)


# -- forms of input and output -----------------------------------------------------------------------


@each_kind
def test_dynamic_batch(kind: str, tmp_path: Path) -> None:
    model, x = literal_vit()
    program = KINDS[kind](exported(model, (x,), dynamic_shapes={"image": {0: Dim("batch", min=1, max=64)}}))
    small = halved(program, x).model
    assert str(small.range_constraints) == str(program.range_constraints)
    again = reloaded(small, tmp_path / "small.pt2")
    for batch in (1, 2, 5):
        more = torch.randn(batch, 3, 16, 16, dtype=torch.float64)
        alone = torch.cat([small.module()(image[None]) for image in more])
        torch.testing.assert_close(again.module()(more), alone, rtol=1e-9, atol=1e-9)


@each_kind
def test_tied_weights(kind: str, tmp_path: Path) -> None:
    model, tokens = randomize(Tied()).double().eval(), torch.randint(0, 20, (2, 7))
    saved = reloaded(KINDS[kind](exported(model, (tokens,))), tmp_path / "tied.pt2")
    for program in (KINDS[kind](exported(model, (tokens,))), saved):
        small = halved(program, tokens).model
        assert small.state_dict["embed.weight"] is small.state_dict["head.weight"]
        assert small.state_dict["embed.weight"].shape == (20, 6)


@each_kind
def test_two_inputs_by_position_and_name(kind: str) -> None:
    model = randomize(Two()).double().eval()
    left, right = torch.randn(2, 6).double(), torch.randn(2, 4).double()
    program = KINDS[kind](exported(model, (left,), {"right": right}))
    small = halved(program, {"right": right, "left": left}).model.module()
    outputs = small(left, right=right)
    assert {name: tuple(t.shape) for name, t in outputs.items()} == {"sum": (2, 3), "gate": (2, 2)}


def test_from_a_file(tmp_path: Path) -> None:
    model, x = literal_vit()
    path = tmp_path / "vit.pt2"
    reloaded(exported(model, (x,)), path)
    graph = surgeon.trace(path, x)
    plan = surgeon.plan(graph, surgeon.score(graph), ratio=0.5, scope="local")
    small = surgeon.operate(os.fspath(path), plan)
    assert surgeon.verify(path, small, plan, x).difference <= 1e-9
    assert surgeon.compare(path, small, x).compression_ratio > 2


def test_a_plan_is_for_other_checkpoints_too(tmp_path: Path) -> None:
    first, x = literal_vit()
    second = randomize(LiteralViT(), seed=1).double().eval()
    result = halved(exported(first, (x,)), x)
    result.plan.save(tmp_path / "plan.json")
    plan, other = surgeon.Plan.load(tmp_path / "plan.json"), exported(second, (x,))
    surgeon.verify(other, surgeon.operate(other, plan), plan, x)


# -- what a program is afterwards --------------------------------------------------------------------


@each_kind
def test_the_original_is_untouched(kind: str) -> None:
    model, x = literal_vit()
    program = KINDS[kind](exported(model, (x,)))
    shown, before = str(program), program.module()(x)
    halved(program, x)
    assert str(program) == shown and torch.equal(program.module()(x), before)


@each_kind
def test_metadata_is_that_of_the_small_program(kind: str) -> None:
    model, x = literal_vit()
    program = KINDS[kind](exported(model, (x,)))
    small = halved(program, x).model
    state = {spec.arg.name: spec.target for spec in small.graph_signature.input_specs if spec.target}
    for old, new in zip(program.graph.nodes, small.graph.nodes, strict=True):
        assert (old.name, old.target, old.meta.get("stack_trace")) == (
            new.name,
            new.target,
            new.meta.get("stack_trace"),
        )
        if new.name in state:
            assert new.meta["val"].shape == small.state_dict[state[new.name]].shape
    assert str(small.graph_signature) == str(program.graph_signature)
    assert small.state_dict.keys() == program.state_dict.keys()
    decomposed(small)


def test_constants_are_cut() -> None:
    class Scaled(nn.Module):
        table: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)
            self.register_buffer("table", torch.rand(8), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x) * self.table + torch.tensor([1.0] * 8))

    x = torch.randn(3, 4)
    small = halved(exported(randomize(Scaled()).eval(), (x,)), x).model
    assert {name: tuple(t.shape) for name, t in small.constants.items()} == {"table": (4,), "lifted_tensor_0": (4,)}


@each_kind
def test_blocks_without_gradients(kind: str, tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    program = KINDS[kind](exported(randomize(Undisturbed()).eval(), (x,)))
    small = halved(program, x).model
    assert small.state_dict["first.weight"].shape == (4, 4)
    torch.testing.assert_close(reloaded(small, tmp_path / "small.pt2").module()(x), small.module()(x))


# -- what is said ------------------------------------------------------------------------------------


def test_reasons_name_module_and_source_line() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).sort(-1).values)

    x = torch.randn(3, 4)
    text = surgeon.trace(exported(Sorted().eval(), (x,)), x).explain("first")
    assert "test_programs.py" in text and ".sort(-1)" in text


@each_kind
def test_a_program_that_writes_into_its_state_is_refused(kind: str) -> None:
    x = torch.randn(3, 4)
    with pytest.raises(UnsupportedModel, match="'calls'"):
        surgeon.trace(KINDS[kind](exported(Counter().eval(), (x,))), x)


def test_a_program_in_training_mode_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3))
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(UnsupportedModel, match=r"model\.eval"):
        surgeon.trace(exported(model.train(), (x,)), x)


def test_control_flow_is_refused() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.second(torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: 2 * y, (x,)))

    x = torch.randn(3, 4)
    with pytest.raises(UnsupportedModel, match=r"%cond .* torch\.cond"):
        surgeon.trace(exported(Branching().eval(), (x,)), x)


def test_a_size_that_does_not_fit_is_named() -> None:
    model, x = literal_vit()
    program = exported(model, (x,))
    plan = halved(program, x).plan
    edits = tuple(edit for edit in plan.edits if not edit.name.startswith("%view"))
    with pytest.raises(SurgeonError, match=r"%view.* does not fit after the cut"):
        surgeon.operate(program, dataclasses.replace(plan, edits=edits))


def test_another_shape_is_refused() -> None:
    model, x = literal_vit()
    with pytest.raises(TraceError, match=r"'image' has shape \[1, 3, 16, 16\].*exported for \[2, 3, 16, 16\]"):
        surgeon.trace(exported(model, (x,)), x[:1])


def test_other_arguments_are_refused() -> None:
    model, x = literal_vit()
    with pytest.raises(TraceError, match="exported for inputs of the form"):
        surgeon.trace(exported(model, (x,)), (x, x))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_text("not a program")
    with pytest.raises(UnsupportedModel, match=r"torch\.export\.save"):
        surgeon.trace(tmp_path / "model.pt2", torch.zeros(1))


def test_in_place_is_refused() -> None:
    model, x = literal_vit()
    program: Any = exported(model, (x,))
    plan = halved(program, x).plan
    with pytest.raises(UnsupportedModel, match="in place"):
        surgeon.operate(program, plan, inplace=True)
