"""Cut a small network for handwritten digits to 0.3 of its FLOPs, and win accuracy back, with a teacher and without.

    python examples/finetune_digits.py

The 1797 digits of 8 x 8 pixels come with scikit-learn: nothing is downloaded. It takes about 20 seconds.

What to look for in the output: a few epochs of fine-tuning bring most of the accuracy back. The original as a teacher
tells more about each digit than its label does, by its logits and by the features that both networks still have. And a
lottery ticket, the same cut of the initial weights, needs the whole training again.
"""

from __future__ import annotations

import copy

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import surgeon


def network() -> nn.Module:
    """Three convolutions with batch norms, [n, 1, 8, 8] -> [n, 10]."""
    layers: list[nn.Module] = []
    for given, width, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1)):
        conv = nn.Conv2d(given, width, 3, stride, 1, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def data() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Return digits to train on, to choose the best epoch by, and to test on."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.as_tensor(labels)
    rest, test = train_test_split(torch.arange(len(x)), test_size=0.3, stratify=y, random_state=0)
    train, val = train_test_split(rest, test_size=0.2, stratify=y[rest], random_state=0)
    return tuple(TensorDataset(x[chosen], y[chosen]) for chosen in (train, val, test))  # type: ignore[return-value]


@torch.no_grad()
def accuracy(model: nn.Module, digits: tuple[Tensor, ...]) -> float:
    """Return the share of digits that are named right."""
    model.eval()
    images, labels = digits
    return float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train, val, test = data()
    loader = DataLoader(train, batch_size=64, shuffle=True)

    def validate(model: nn.Module) -> float:
        return accuracy(model, val.tensors)

    model = network()
    initial = copy.deepcopy(model.state_dict())
    surgeon.finetune(model, loader, epochs=25, lr=1e-2, validate=validate, seed=0)
    result = surgeon.prune(model, train[:1][0], flops=0.3)
    print(result.plan, "\n")
    print(f"original                      {accuracy(model, test.tensors):6.1%}")
    print(f"as cut                        {accuracy(result.model, test.tensors):6.1%}")

    ways = {
        "5 epochs": {},
        "5 epochs, with a teacher": {"teacher": model, "distill": 0.9},
        "5 epochs, with features": {"teacher": model, "distill": 0.9, "features": 1.0, "plan": result.plan},
    }
    for name, options in ways.items():
        small = copy.deepcopy(result.model)
        tuned = surgeon.finetune(small, loader, epochs=5, lr=5e-3, validate=validate, seed=0, **options)
        print(f"{name:30}{accuracy(small, test.tensors):6.1%}   ({tuned})")

    ticket = surgeon.rewind(model, result.plan, initial)
    surgeon.finetune(ticket, loader, epochs=25, lr=1e-2, validate=validate, seed=0)
    print(f"lottery ticket, 25 epochs     {accuracy(ticket, test.tensors):6.1%}")


if __name__ == "__main__":
    main()
