"""Models that take and return more than one tensor, in the ways that users do it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DictOutput(nn.Module):
    """Segmentation with an auxiliary head, in the style of torchvision: an ordered dict of answers."""

    def __init__(self, width: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layer = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 1, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.classifier = nn.Conv2d(2 * width, classes, 1)
        self.aux_classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = x.shape[-2:]
        features = OrderedDict(aux=self.stem(x))
        features["out"] = self.layer(features["aux"])
        result = OrderedDict()
        result["out"] = F.interpolate(self.classifier(features["out"]), size=size, mode="bilinear", align_corners=False)
        aux = self.aux_classifier(features["aux"])
        result["aux"] = F.interpolate(aux, size=size, mode="bilinear", align_corners=False)
        return result


@dataclass
class Prediction:
    """What ``DataclassOutput`` returns."""

    logits: Tensor
    features: Tensor
    loss: Tensor | None = None


class DataclassOutput(nn.Module):
    """Returns a dataclass whose fields are an answer, the features behind it, and nothing."""

    def __init__(self, width: int = 8, num_classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.fc1 = nn.Linear(2 * width, 12)
        self.fc2 = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Prediction:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        features = x.mean((2, 3))
        return Prediction(self.fc2(F.relu(self.fc1(features))), features)


class Encoded(NamedTuple):
    """What ``VAE`` returns."""

    image: Tensor
    mean: Tensor
    log_variance: Tensor


class VAE(nn.Module):
    """Autoencoder with a stochastic middle in training, which returns a named tuple."""

    def __init__(self, width: int = 8, latent: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.fc_mu = nn.Linear(2 * width * 4, latent)
        self.fc_var = nn.Linear(2 * width * 4, latent)
        self.decoder_input = nn.Linear(latent, 2 * width * 4)
        self.decoder = nn.Sequential(
            nn.Unflatten(1, (2 * width, 2, 2)),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, 2, 1),
        )

    def forward(self, x: Tensor) -> Encoded:
        h = self.encoder(x)
        mu, log_var = self.fc_mu(h), self.fc_var(h)
        z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu) if self.training else mu
        return Encoded(self.decoder(self.decoder_input(z)), mu, log_var)


class KeywordInputs(nn.Module):
    """Token classifier called with keyword arguments: ids, a padding mask, and a context that may be left out."""

    def __init__(self, vocab: int = 20, dim: int = 12, classes: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.context = nn.Linear(6, dim)
        self.fc1 = nn.Linear(dim, 24)
        self.fc2 = nn.Linear(24, dim)
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, classes)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, context: Tensor | None = None
    ) -> dict[str, Tensor]:
        x = self.embed(input_ids)
        if context is not None:
            x = x + self.context(context).unsqueeze(1)
        x = self.norm(x + self.fc2(F.gelu(self.fc1(x))))
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        mask = attention_mask.unsqueeze(-1).to(x.dtype)
        pooled = (x * mask).sum(1) / mask.sum(1).clamp(min=1)
        return {"logits": self.classifier(pooled)}


class TwoModalities(nn.Module):
    """Image and table features, fused by concatenation and by a product; inputs come as one dict argument."""

    def __init__(self, width: int = 8, columns: int = 5, num_classes: int = 3) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 16, 3, 2, 1), nn.ReLU())
        self.table = nn.Sequential(nn.Linear(columns, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 16))
        self.head = nn.Linear(48, num_classes)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        a = self.image(batch["image"]).flatten(2).mean(-1)
        b = self.table(batch["table"])
        return self.head(torch.cat([a, b, a * b], dim=-1))


def _keywords() -> dict[str, Tensor]:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return {"input_ids": torch.randint(0, 20, (2, 5)), "attention_mask": mask, "context": torch.randn(2, 6)}


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "dict_output": lambda: (DictOutput(), torch.randn(2, 3, 12, 12)),
    "dataclass_output": lambda: (DataclassOutput(), torch.randn(2, 3, 8, 8)),
    "vae": lambda: (VAE(), torch.randn(2, 1, 8, 8)),
    "keyword_inputs": lambda: (KeywordInputs(), _keywords()),
    "dict_argument": lambda: (
        TwoModalities(),
        ({"image": torch.randn(2, 3, 12, 12), "table": torch.randn(2, 5)},),
    ),
}
