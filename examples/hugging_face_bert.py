"""Cut a BERT of transformers so that ``from_pretrained`` loads the result.

    python examples/hugging_face_bert.py [FOLDER]

Nothing is downloaded: the model is made from a configuration, with random weights. A configuration knows one width for
all layers of a kind, so layers are cut alike (``uniform=True``) and attention loses whole heads (``heads=True``).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

import surgeon


def main(folder: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=512,
        vocab_size=1000,
        num_labels=3,
    )
    model = BertForSequenceClassification(config).eval()
    tokens = {"input_ids": torch.randint(1000, (2, 32)), "attention_mask": torch.ones(2, 32, dtype=torch.long)}

    graph = surgeon.trace(model, tokens)
    print(graph)
    for group in graph.free[:4]:
        print(f"  {group.name}: {group.size} units")

    result = surgeon.prune(model, tokens, ratio=0.5, scope="local", uniform=True, heads=True)
    print(f"\n{result.plan}\n{result.proof}")

    saved = surgeon.save(result.model, result.plan, folder / "bert-small")
    print(f"\nsaved: {saved}")
    again = AutoModelForSequenceClassification.from_pretrained(folder / "bert-small")
    new = again.config
    print(f"hidden_size {config.hidden_size} -> {new.hidden_size}")
    print(f"num_attention_heads {config.num_attention_heads} -> {new.num_attention_heads}")
    print(f"intermediate_size {config.intermediate_size} -> {new.intermediate_size}")
    assert torch.equal(again(**tokens).logits, result.model(**tokens).logits)
    print("transformers loads it from its configuration, and gets the same logits")

    # Widths that no configuration can say are kept with the plan, for surgeon.load.
    result = surgeon.prune(model, tokens, flops=0.5)
    saved = surgeon.save(result.model, result.plan, folder / "bert-any")
    print(f"\nsaved: {saved}")
    again = surgeon.load(folder / "bert-any")
    assert torch.equal(again(**tokens).logits, result.model(**tokens).logits)
    widths = [layer.intermediate.dense.out_features for layer in again.bert.encoder.layer]
    print(f"surgeon loads it from its plan: MLPs of {widths} units")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
