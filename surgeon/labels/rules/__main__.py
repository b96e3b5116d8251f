"""Write the table of ops that surgeon has rules for: ``python -m surgeon.labels.rules > docs/ops.md``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from importlib import import_module

from surgeon.labels.rules import RULES
from surgeon.labels.rules.contraction import LINES

HEAD = """# Operators

This page is written by `python -m surgeon.labels.rules`. It lists the operators that surgeon has a rule for, by the
name under which they arrive when a model runs: functions and methods, in place or not, have one name (`add` is
`torch.add`, `x.add_(y)` and `x += y`). Layers such as `nn.MultiheadAttention`, and functions that torch writes in
Python, arrive as the operators that they are made of.

An operator that is not here pins what it touches, and nothing else; `explain` names it as `no rule for ...`. How to add
one, or to teach surgeon an operator of your own, is in [architecture.md](architecture.md).
"""

KINDS = {
    "contraction": "Products, convolutions, norms",
    "elementwise": "Position by position",
    "factory": "Making tensors",
    "images": "Pixels by place",
    "indexing": "Slices, indices, lookups",
    "joining": "Side by side",
    "movement": "Elsewhere",
    "recurrent": "Recurrent layers",
    "reduction": "Sums, searches, windows, transforms",
}

# What real models call and what stays without a rule, and why.
UNKNOWN: dict[str, str] = {
    "masked_select, nonzero, where(x), unique": "how many positions there are depends on the data",
    "stft, istft": "frames of a signal become frequencies",
    "kron, block_diag, cartesian_prod": "every position of the result depends on the place of two others",
    "multinomial": "draws places along the dimension",
    "renorm": "a norm of slices, over dimensions that it doesn't name",
    "pairwise_distance": "adds eps to each difference, also where a position is cut",
    "torchvision::ps_roi_align, torchvision::ps_roi_pool": "channels are places in a grid of bins",
    "histc, bincount": "positions of the result are values of the input",
    "cross_entropy_loss, nll_loss_nd": "losses: classes are the model's output",
    "masked_scatter, index_put, put": "which position goes where depends on the data",
    "linalg_inv, linalg_svd, linalg_qr, linalg_eigh": "every position of the result depends on all of the matrix",
    "linalg_norm, pdist": "matrix norms and distances of all pairs; linalg_vector_norm and cdist have rules",
}


def page() -> str:
    """Return the page as Markdown."""
    parts = [HEAD]
    for kind, title in KINDS.items():
        parts.append(f"## {title}\n\n{_table(kind)}\n")
    rows = "\n".join(f"| {_names(names.split(', '))} | {why} |" for names, why in UNKNOWN.items())
    parts.append(f"## Without a rule\n\n| Operators | Why |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def _table(kind: str) -> str:
    """Group a kind's ops by what their rule says."""
    said: dict[str, list[str]] = defaultdict(list)
    for name in sorted(import_module(f"surgeon.labels.rules.{kind}").RULES):
        said[describe(name)].append(name)
    rows = "\n".join(f"| {_names(names)} | {text} |" for text, names in said.items())
    return f"| Operators | Rule |\n|---|---|\n{rows}"


def describe(name: str) -> str:
    """Return the line of notation of an op, or the first sentence of what its rule says."""
    if name in LINES:
        return f"`{LINES[name]}`"
    text = " ".join((RULES[name].__doc__ or "").partition("\n\n")[0].split())
    return text.rstrip(".")


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    print(page(), end="")
