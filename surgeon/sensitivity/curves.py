"""The record: what the original and every cut of a single group are worth."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from surgeon.errors import SensitivityError, UnknownLayer

FORMAT = "surgeon-sensitivity"
VERSION = 1


@dataclass(frozen=True)
class Curve:
    """One group cut alone: how many of its ``size`` units went [k], and what the model was worth then [k].

    A unit is a removal step, as in a plan: where a group is a table, one unit of each row. Ratios that come to the
    same number of units have the same value.
    """

    group: str
    size: int
    removed: tuple[int, ...]
    value: tuple[float, ...]

    def __str__(self) -> str:
        points = ", ".join(f"-{removed}: {value:.6g}" for removed, value in zip(self.removed, self.value))
        return f"{self.group}: {self.size} units; {points}"


@dataclass(frozen=True)
class Sensitivity:
    """What a model is worth when one group is cut, for every free group and some ratios.

    base      value of the original
    ratios    [k] shares of a group that go, increasing
    curves    one per group, in the order of the graph
    settings  criterion and method that it was measured with

    Examples
    --------
    >>> found = surgeon.sensitivity(model, x, evaluate=accuracy)
    >>> print(found, found["conv1"], found.drop("conv1"))
    >>> surgeon.prune(model, x, flops=0.7, losses=found)
    """

    base: float
    ratios: tuple[float, ...]
    curves: tuple[Curve, ...]
    settings: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, group: str) -> Curve:
        """Return the curve of a group; raises UnknownLayer with the nearest names."""
        for curve in self.curves:
            if curve.group == group:
                return curve
        raise UnknownLayer(group, [curve.group for curve in self.curves])

    def drop(self, group: str) -> np.ndarray:
        """Return how much value is lost at each ratio, float64 ``[k]``; below zero where a cut did good."""
        return self.base - np.array(self[group].value)

    def losses(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return curves for the choice of widths: group name -> units removed ``[n]``, loss ``[n]``.

        The first point is no cut and no loss. Losses never fall with more units gone, and none is below zero: what a
        cut gains, or a larger cut wins back, is taken for the chance of the evaluation.
        """
        found = {}
        for curve in self.curves:
            removed, first = np.unique(np.array([0, *curve.removed]), return_index=True)
            loss = np.concatenate([[0.0], self.drop(curve.group)])[first]
            found[curve.group] = (removed, np.maximum.accumulate(np.maximum(loss, 0.0)))
        return found

    # -- showing -------------------------------------------------------------------------------------

    def __rich_console__(self, console: Console, options: Any) -> Any:
        title = f"Drop from {self.base:.6g}, by the share of a group that goes"
        table = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
        table.add_column("group", overflow="fold")
        for heading in ("units", *(f"{ratio:.4g}" for ratio in self.ratios)):
            table.add_column(heading, justify="right")
        for curve in self._by_drop():
            table.add_row(curve.group, str(curve.size), *map(self._shown, self.drop(curve.group)))
        yield table

    def __str__(self) -> str:
        console = Console(width=100, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return captured.get()

    def _by_drop(self) -> list[Curve]:
        """The curves, those that lose most first."""
        return sorted(self.curves, key=lambda curve: -float(self.drop(curve.group).mean()))

    def _shown(self, drop: float) -> str:
        return "0" if abs(drop) <= 1e-12 * max(1.0, abs(self.base)) else f"{drop:.3g}"

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw drop over share cut, a line per group, and return the matplotlib figure.

        Parameters
        ----------
        path : where to write it, in the format that its suffix says

        Raises
        ------
        SensitivityError where matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise SensitivityError("plots need matplotlib: pip install 'channel-surgeon[plot]'") from error
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        named = {curve.group for curve in self._by_drop()[:12]}  # a legend of more lines is read by nobody
        for curve in self.curves:
            share = [0.0, *(removed / curve.size for removed in curve.removed)]
            label = curve.group if curve.group in named else f"_{curve.group}"
            axes.plot(share, [0.0, *self.drop(curve.group)], marker=".", label=label)
        axes.set_xlabel("share of the group that is cut")
        axes.set_ylabel(f"drop from {self.base:.6g}")
        axes.legend(fontsize="small")
        if path is not None:
            figure.savefig(path)
        return figure

    # -- keeping -------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Write as JSON: the same record gives the same bytes."""
        data = {
            "format": FORMAT,
            "version": VERSION,
            "base": self.base,
            "ratios": list(self.ratios),
            "settings": dict(self.settings),
            "curves": [
                {"group": c.group, "size": c.size, "removed": list(c.removed), "value": list(c.value)}
                for c in self.curves
            ],
        }
        return json.dumps(data, indent=1, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Sensitivity:
        """Read what ``to_json`` wrote; raises SensitivityError for anything else."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT or data["version"] != VERSION:
                raise SensitivityError(
                    f"expected sensitivities of version {VERSION}, got {data['format']!r} {data['version']!r}"
                )
            curves = tuple(_curve(item, len(data["ratios"])) for item in data["curves"])
            return Sensitivity(finite(data["base"]), tuple(map(finite, data["ratios"])), curves, data["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise SensitivityError(f"these are no sensitivities ({type(error).__name__}: {error})") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a JSON file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Sensitivity:
        """Read from a JSON file."""
        return Sensitivity.from_json(Path(path).read_text(encoding="utf-8"))


def _curve(item: Mapping[str, Any], points: int) -> Curve:
    """Read a curve; raises ValueError where it does not fit the number of ratios or its own size."""
    removed, value = tuple(map(int, item["removed"])), tuple(map(finite, item["value"]))
    curve = Curve(item["group"], int(item["size"]), removed, value)
    if not len(curve.removed) == len(curve.value) == points or not all(0 < n < curve.size for n in curve.removed):
        raise ValueError(f"the curve of {curve.group!r} does not fit: {curve}")
    return curve


def finite(value: Any) -> float:
    """Return a number read from JSON; raises ValueError unless it is a finite one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)
