"""What fine-tuning did, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Epoch:
    """Means over the steps of one epoch; epoch 0 is the model before the first step.

    loss      what was minimised
    task      the user's loss, or cross-entropy
    soft      distance to the teacher's logits
    features  relative squared distance to the teacher's features
    lr        rate of the last step, of the first parameter group
    value     what ``validate`` said after the epoch
    """

    number: int
    loss: float | None = None
    task: float | None = None
    soft: float | None = None
    features: float | None = None
    lr: float | None = None
    value: float | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        told = {"loss": self.loss, "task": self.task, "soft": self.soft, "features": self.features, "lr": self.lr}
        parts = [f"{name} {number:.4g}" for name, number in {**told, "value": self.value}.items() if number is not None]
        return f"epoch {self.number}: " + (", ".join(parts) or "not evaluated")


@dataclass(frozen=True)
class Finetuned:
    """What ``finetune`` returns; the model itself is tuned in place.

    history  the epochs, the first of them number 0
    best     number of the epoch whose weights the model has; None without ``validate``, where the last ones stay
    steps    optimizer steps taken
    renormed whether the statistics of batch norms that were taken anew after training were kept

    Examples
    --------
    >>> tuned = surgeon.finetune(model, loader, epochs=2)
    >>> print(tuned.history[-1].loss, tuned.steps)
    """

    history: tuple[Epoch, ...]
    best: int | None
    steps: int
    renormed: bool = False

    @property
    def value(self) -> float | None:
        """The value of the weights that were kept, before statistics were taken anew."""
        return None if self.best is None else next(e.value for e in self.history if e.number == self.best)

    def __str__(self) -> str:
        last = self.history[-1]
        loss = "" if last.loss is None else f", loss {last.loss:.4g} at the end"
        kept = "" if self.best is None else f", best value {self.value:.6g} after epoch {self.best}, whose weights stay"
        return f"{last.number} epochs of {self.steps} steps{loss}{kept}"
