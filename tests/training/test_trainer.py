"""The callback for Hugging Face's Trainer cuts a BERT while it trains, and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

import surgeon
from surgeon.errors import FileError, PrunerError
from tests.training.loops import STEPS, same, schedule

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import transformers

from surgeon.integrations.transformers import FILE, PrunerCallback

pytestmark = pytest.mark.filterwarnings("ignore")

IDS = torch.arange(16).view(2, 8) % 30


class Sentences(Dataset):  # type: ignore[type-arg]
    """Random token ids with a label each."""

    def __len__(self) -> int:
        return 4 * STEPS

    def __getitem__(self, i: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(i)
        return {"input_ids": torch.randint(30, (8,), generator=draw), "labels": i % 2}


def bert() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=16,
        attn_implementation="eager",
    )
    return transformers.BertForSequenceClassification(config)


def callback(model: Any, **options: Any) -> PrunerCallback:
    # Heads of dropout draw by shape: without any, a loop with another shape draws the same.
    return PrunerCallback(model, {"input_ids": IDS}, schedule(), **options)


def trainer(model: Any, folder: Path, *callbacks: Any, steps: int = STEPS, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        save_steps=6,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
        logging_strategy="no",
        **options,
    )
    return transformers.Trainer(model, arguments, train_dataset=Sentences(), callbacks=list(callbacks))


@pytest.mark.parametrize("options", [{}, {"criterion": "taylor"}, {"regularizer": "group_lasso"}])
def test_it_cuts_while_it_trains(tmp_path: Path, options: Any) -> None:
    model = bert()
    before = sum(p.numel() for p in model.parameters())
    cuts = callback(model, **options)
    run = trainer(model, tmp_path, cuts)
    run.train()
    assert [cut.step for cut in cuts.pruner.history] == [4, 8] and cuts.pruner.taken == STEPS
    assert cuts.pruner.shares()["flops"] <= 0.5
    assert sum(p.numel() for p in model.parameters()) < before
    inner = run.optimizer.optimizer
    held = {id(p) for group in inner.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert all(inner.state[p]["exp_avg"].shape == p.shape for p in model.parameters() if p in inner.state)
    assert all(inner.state[p]["step"] == STEPS for p in model.parameters() if p in inner.state)


def test_nothing_but_the_cut_is_changed(tmp_path: Path) -> None:
    """With cuts that come after the end, weights are those without the callback."""
    plain, model = bert(), bert()
    trainer(plain, tmp_path / "a").train()
    late = PrunerCallback(model, {"input_ids": IDS}, surgeon.schedule.one_shot(flops=0.5, at=100))
    trainer(model, tmp_path / "b", late).train()
    assert same(plain.state_dict(), model.state_dict()) and late.pruner.taken == STEPS


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    whole = bert()
    trainer(whole, tmp_path / "whole", callback(whole)).train()
    assert (tmp_path / "whole" / "checkpoint-6" / FILE).is_file()
    model = bert()
    again = callback(model)
    again.load(tmp_path / "whole" / "checkpoint-6")
    assert len(again.pruner.history) == 1
    trainer(model, tmp_path / "again", again).train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert [cut.step for cut in again.pruner.history] == [4, 8]
    assert same(model.state_dict(), whole.state_dict())


def test_mistakes_are_told(tmp_path: Path) -> None:
    model = bert()
    trainer(model, tmp_path, callback(model)).train()
    with pytest.raises(FileError, match=r"surgeon\.pt is not there"):
        callback(bert()).load(tmp_path)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(FileError, match="can't be read"):
        callback(bert()).load(tmp_path)
    with pytest.raises(PrunerError, match="another model"):
        trainer(bert(), tmp_path, callback(bert())).train()
    model = bert()
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 6}
    run = transformers.Trainer(
        model,
        transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, save_steps=6, report_to=[], **best),
        train_dataset=Sentences(),
        eval_dataset=Sentences(),
        callbacks=[callback(model)],
    )
    with pytest.raises(PrunerError, match="load_best_model_at_end"):
        run.train()
    # A checkpoint from before the first cut has weights that fit, and would go on with the wrong count of steps.
    late = surgeon.schedule.one_shot(flops=0.5, at=10)
    model = bert()
    trainer(model, tmp_path / "late", PrunerCallback(model, {"input_ids": IDS}, late), steps=6).train()
    model = bert()
    with pytest.raises(PrunerError, match="the pruner is at step 0"):
        trainer(model, tmp_path / "late", PrunerCallback(model, {"input_ids": IDS}, late)).train(
            resume_from_checkpoint=str(tmp_path / "late" / "checkpoint-6")
        )
