"""Training after a cut: a plain loop with distillation, and the plan replayed on earlier weights."""

from surgeon.finetune.finetune import finetune
from surgeon.finetune.records import Epoch, Finetuned
from surgeon.finetune.rewind import rewind

__all__ = ["Epoch", "Finetuned", "finetune", "rewind"]
