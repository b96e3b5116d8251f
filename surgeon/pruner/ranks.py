"""Several processes train one model: their scores are averaged, and they have to decide on the same cut."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from surgeon.errors import PrunerError
from surgeon.plan import Plan

# Settings of a wrapper that it keeps under the names of its arguments; not all versions of torch keep all.
SETTINGS = ("broadcast_buffers", "find_unused_parameters", "gradient_as_bucket_view", "static_graph")


class Ranks:
    """The processes that cut together; one alone where ``torch.distributed`` is not at work.

    Parameters
    ----------
    group : process group; None is the default one
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group

    @property
    def count(self) -> int:
        """How many processes there are."""
        working = dist.is_available() and dist.is_initialized()
        return dist.get_world_size(self.group) if working else 1

    def mean(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return scores averaged over processes: gradients need not have been synchronised."""
        if self.count == 1:
            return dict(scores)
        flat = torch.cat([value.double() for value in scores.values()]).to(self._device())
        dist.all_reduce(flat, group=self.group)
        parts = (flat.cpu() / self.count).split([len(value) for value in scores.values()])
        return dict(zip(scores, parts))

    def agree(self, plan: Plan | None, step: int) -> None:
        """Raise PrunerError on all processes unless all have made the same plan at the same step."""
        if self.count == 1:
            return
        mine = f"{step}:{'nothing' if plan is None else plan.to_json(compact=True)}"
        digest = hashlib.sha256(mine.encode()).digest()
        sent = torch.tensor([*digest, step % 2**31], dtype=torch.int64, device=self._device())
        received = [torch.empty_like(sent) for _ in range(self.count)]
        dist.all_gather(received, sent, group=self.group)
        other = [rank for rank, each in enumerate(received) if not torch.equal(each[:-1], received[0][:-1])]
        if other:
            steps = [int(each[-1]) for each in received]
            why = f"they are at steps {steps}" if len(set(steps)) > 1 else f"ranks {other} differ from rank 0"
            raise PrunerError(
                f"the {self.count} processes would cut differently: {why}. Weights have to be the same everywhere: "
                "broadcast them from one rank before training, give every rank the same seed, and call "
                "pruner.step() equally often on all"
            )

    def _device(self) -> torch.device:
        """Return where tensors have to be for the group's backend."""
        nccl = dist.get_backend(self.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    def __str__(self) -> str:
        return f"{self.count} processes"


def rewrap(wrapped: nn.Module) -> DistributedDataParallel:
    """Return a new wrapper around a model that was cut inside of one: the old one synchronises tensors that are gone.

    Every process has to call it. Settings are those of the old wrapper; communication hooks have to be registered
    again.

    Raises
    ------
    PrunerError for what is no ``DistributedDataParallel``.

    Examples
    --------
    >>> if pruner.step():
    ...     ddp = surgeon.pruner.rewrap(ddp)
    """
    if not isinstance(wrapped, DistributedDataParallel):
        raise PrunerError(f"{type(wrapped).__name__} is no DistributedDataParallel; only that needs a new wrapper")
    return DistributedDataParallel(
        wrapped.module,
        device_ids=wrapped.device_ids,
        output_device=wrapped.output_device,
        dim=wrapped.dim,
        process_group=wrapped.process_group,
        **{name: getattr(wrapped, name) for name in SETTINGS if hasattr(wrapped, name)},
    )
