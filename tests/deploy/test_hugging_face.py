"""Folders of Hugging Face models: widths in the configuration where it can say them, the plan beside it otherwise."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import FileError, UnsupportedModel
from surgeon.modules import tensors_in

transformers = pytest.importorskip("transformers")

from tests.zoo.hugging_face import entries  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, not of ours

# What is cut: heads whole, so that their width, the scale that goes with it and rotary tables stay.
HEADS: dict[str, Any] = {"heads": True}
MODELS: dict[str, dict[str, Any]] = {
    "bert": HEADS,
    "gpt2": HEADS,
    "t5": HEADS,
    "vit": HEADS,
    "llama": {"keep": {"out": ["*.q_proj", "*.k_proj", "*.v_proj"]}},
    "opt": HEADS,
    "gpt_neox": HEADS,
    "swin": HEADS,
    "mamba": {},
    "convnext": {},
    "distilbert": HEADS,
    "deberta_v2": HEADS,
}
QUICK = ("bert", "gpt2", "llama", "vit")


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def cut(name: str, keep: Any = (), **options: Any) -> tuple[nn.Module, nn.Module, surgeon.Plan, Any]:
    model, inputs = entries()[name]()
    graph = surgeon.trace(model, inputs, keep=keep)
    settings = {"ratio": 0.5, "scope": "local", "uniform": True, **options}
    plan = surgeon.plan(graph, surgeon.score(graph), **settings)
    return model, surgeon.operate(model, plan), plan, inputs


def assert_equal(small: nn.Module, again: nn.Module, inputs: Any) -> None:
    assert type(again) is type(small) and not again.training
    with torch.no_grad():
        expected, found = ([*tensors_in(each(**inputs))] for each in (small, again))
    assert len(expected) == len(found) > 0
    assert all(torch.equal(a, b) for a, b in zip(expected, found))


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_uniform_widths_are_in_the_configuration(tmp_path: Path, name: str) -> None:
    _, small, plan, inputs = cut(name, **MODELS[name])
    saved = surgeon.save(small, plan, tmp_path / "small")
    assert saved.needs_plan == "" and str(saved) == str(tmp_path / "small")
    again = type(small).from_pretrained(tmp_path / "small")
    assert_equal(small, again, inputs)
    assert_equal(small, surgeon.load(tmp_path / "small"), inputs)
    assert surgeon.Plan.load(tmp_path / "small" / "surgeon-plan.json") == plan
    assert not list((tmp_path / "small").glob(".*"))
    body = transformers.AutoModel.from_pretrained(tmp_path / "small").state_dict()
    inside = getattr(small, small.base_model_prefix, small).state_dict()
    shared = body.keys() & inside.keys()
    assert 2 * len(shared) > len(inside) and all(torch.equal(body[key], inside[key]) for key in shared)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {"hidden_size": (32, 16), "intermediate_size": (64, 32)}),
        ("bert", {"hidden_size": (32, 16), "intermediate_size": (64, 32), "num_attention_heads": (4, 2)}),
    ],
)
def test_the_fields_that_changed(tmp_path: Path, name: str, fields: Any) -> None:
    model, small, plan, _ = cut(name, **MODELS[name])
    surgeon.save(small, plan, tmp_path / "small")
    before, after = model.config.to_dict(), json.loads((tmp_path / "small" / "config.json").read_text())
    changed = {
        k: (before[k], after[k]) for k in before if k in after and type(before[k]) is int and before[k] != after[k]
    }
    assert changed == fields


@pytest.mark.parametrize("name", ["llama", "vit", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_other_widths_need_the_plan(tmp_path: Path, name: str) -> None:
    """Widths of heads, which scales and rotary tables are computed from."""
    model, small, plan, inputs = cut(name, uniform=False)
    saved = surgeon.save(small, plan, tmp_path / "small")
    assert saved.needs_plan and "surgeon.load" in str(saved)
    assert_equal(small, surgeon.load(tmp_path / "small"), inputs)
    config = type(model.config).from_pretrained(tmp_path / "small")
    assert config.hidden_size == model.config.hidden_size and config.architectures == [type(model).__name__]
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        type(model).from_pretrained(tmp_path / "small")
    again = surgeon.load(lambda: type(model)(model.config).eval(), tmp_path / "small")
    assert_equal(small, again, inputs)


def test_half_precision_and_files(tmp_path: Path) -> None:
    _, small, plan, inputs = cut("llama", **MODELS["llama"])
    rotary = small.model.rotary_emb
    for dtype in (torch.float32, torch.bfloat16):
        # Loaded in half precision, transformers computes tables in full precision; cast later, they are cast too.
        small = small.to(torch.bfloat16)
        rotary.inv_freq = (1 / 10000 ** (torch.arange(0, 8, 2).float() / 8)).to(dtype)
        rotary.original_inv_freq = rotary.inv_freq.clone()
        saved = surgeon.save(small, plan, tmp_path / str(dtype))
        assert ("inv_freq" in saved.needs_plan) == (dtype == torch.bfloat16)
        again = surgeon.load(saved)
        assert again.dtype == torch.bfloat16 and again.model.rotary_emb.inv_freq.dtype == dtype
        assert_equal(small, again, inputs)
    surgeon.save(small, plan, tmp_path / "one.safetensors")
    config = entries()["llama"]()[0].config
    assert_equal(small, surgeon.load(lambda: type(small)(config).eval(), tmp_path / "one.safetensors"), inputs)


def test_the_source_is_cut_from_files_to_a_folder_of_the_same_layout(tmp_path: Path) -> None:
    model, small, plan, inputs = cut("llama", **MODELS["llama"])
    model.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    surgeon.operate_file(plan, tmp_path / "source", tmp_path / "small", shard_size="10KB")
    assert_equal(small, surgeon.load(lambda: type(model)(model.config).eval(), tmp_path / "small"), inputs)
    surgeon.save(small, plan, tmp_path / "config")
    (tmp_path / "config" / "config.json").replace(tmp_path / "small" / "config.json")
    assert_equal(small, type(small).from_pretrained(tmp_path / "small"), inputs)


class Disguised(nn.Module):
    """Not of transformers."""


def test_what_is_no_folder_of_transformers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileError, match="is no folder"):
        surgeon.load(tmp_path / "small.safetensors")
    with pytest.raises(FileError, match=r"holds no surgeon-plan\.json"):
        surgeon.load(tmp_path)
    _, small, plan, _ = cut("vit", uniform=False)
    surgeon.save(small, plan, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    for names in (["AutoConfig"], ["os"], [], ["__name__"], [3]):
        (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "architectures": names}))
        with pytest.raises(FileError, match=r"no model class|can't be read"):
            surgeon.load(tmp_path / "a")
    with pytest.raises(FileError, match=r"holds no surgeon-plan\.json"):
        (tmp_path / "empty").mkdir()
        surgeon.load(Disguised, tmp_path / "empty")
    with pytest.raises(UnsupportedModel, match="give the file as well"):
        surgeon.load(Disguised)


def test_an_interrupted_save_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, small, plan, _ = cut("vit", **HEADS)
    surgeon.save(small, plan, tmp_path / "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    changed = copy.deepcopy(small)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(2)

    def full(*_: Any) -> Tensor:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("surgeon.deploy.hugging_face.synced", full)
    with pytest.raises(FileError, match="No space left"):
        surgeon.save(changed, plan, tmp_path / "a")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


def test_a_configuration_that_transformers_refuses_is_not_written(tmp_path: Path) -> None:
    """The constructor of a Llama takes a width that is no multiple of its heads; its configuration can't be saved."""
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=20, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = {"input_ids": torch.arange(8)[None], "use_cache": False}
    keep = {"out": ["*.q_proj", "*.k_proj", "*.v_proj", "*.gate_proj"]}
    cut = surgeon.prune(model, tokens, ratio=1 / 16, keep=keep)
    assert cut.model.lm_head.in_features == 15
    saved = surgeon.save(cut.model, cut.plan, tmp_path)
    assert "transformers refuses a configuration of these widths" in saved.needs_plan
    again = surgeon.load(tmp_path)
    assert torch.equal(again(**tokens).logits, cut.model(**tokens).logits)
