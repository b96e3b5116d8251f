"""Weights read from files, a piece at a time, for models that are larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from surgeon.errors import ScoreError
from surgeon.files.checkpoint import Reader, Source, tensors
from surgeon.files.header import Stored
from surgeon.files.names import prefix_hint
from surgeon.groups import Pieces

if TYPE_CHECKING:
    from surgeon.graph import DependencyGraph


class Stream(Mapping[str, Pieces]):
    """The parameters of a graph as a checkpoint has them, seen through a function.

    Raises
    ------
    ScoreError where the checkpoint is not one of the graph's model, FileError where it is damaged.
    """

    def __init__(self, graph: DependencyGraph, function: Callable[..., Tensor], source: Source) -> None:
        self.function = function
        self.reader = Reader()
        stored = tensors(source)
        self.found: dict[str, Stored] = {}
        for name, known in graph.aliases.items():
            if known in graph.parameters and name in stored:
                self.found.setdefault(known, stored[name])
        for name in sorted(graph.parameters - self.found.keys()):
            hint = prefix_hint(stored, graph.aliases) or "; are all files given?"
            raise ScoreError(f"the files have no parameter {name!r}{hint}")
        for name, tensor in self.found.items():
            shape = tuple(graph.tensor(name).shape)
            if tensor.shape != shape:
                raise ScoreError(f"{tensor}: the model that was traced has {name} of shape {list(shape)}")

    def __getitem__(self, name: str) -> Pieces:
        return Pieces(self.found[name].shape, self._pieces(self.found[name]))

    def _pieces(self, stored: Stored) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        with self.reader:
            for where, values in self.reader.pieces(stored):
                yield where, self.function(values, out=values)

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)
