"""Numbers, names and bars in few characters."""

from __future__ import annotations

import math
import re

from rich.cells import cell_len, set_cell_size

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_EIGHTHS = " ▏▎▍▌▋▊▉"


def short(value: float | None, unit: str = "") -> str:
    """Return a number with three digits and a prefix, ``2.06G``; a dash for what is not known.

    >>> short(999_700), short(64), short(11e6, "B")
    ('1.00M', '64', '11.0 MB')
    """
    if value is None or not math.isfinite(value):
        return "-"
    rounded = float(f"{value:.3g}")
    scale, prefix = next((p for p in _PREFIXES if abs(rounded) >= p[0]), _PREFIXES[-1])
    exact = scale == 1 and rounded == int(rounded)
    number = str(int(rounded)) if exact else f"{rounded / scale:#.3g}".rstrip(".")
    return f"{number} {prefix}{unit}" if unit else number + prefix


def milliseconds(seconds: float) -> str:
    """Return a time with three digits: ``41.2 ms``, or ``1.25 s``."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def share(part: float, whole: float) -> str:
    """Return what a part is of a whole, in per cent, never 0% or 100% for what is only close to it.

    >>> share(1, 3), share(0.1, 1000), share(999.9, 1000), share(5, 5)
    ('33%', '<1%', '>99%', '100%')
    """
    if not whole or not math.isfinite(part / whole):
        return "-"
    percent = f"{part / whole:.0%}"
    if percent == "0%" and part:
        return "<1%"
    return ">99%" if percent == "100%" and part < whole else percent


def bar(part: float, width: int, ascii_only: bool = False) -> tuple[str, str]:
    """Return a bar of some cells as what is full and what is empty of it, to an eighth of a cell."""
    part = min(max(part, 0.0), 1.0) if math.isfinite(part) else 0.0
    if ascii_only:
        full = round(part * width)
        return "#" * full, "." * (width - full)
    eighths = math.ceil(part * width * 8 - 1e-9)
    full, rest = divmod(eighths, 8)
    solid = "█" * full + (_EIGHTHS[rest] if rest else "")
    return solid, " " * (width - len(solid))


def sizes(before: tuple[int, ...], after: tuple[int, ...], arrow: str = "→") -> str:
    """Return the shape of a weight before and after: ``64→31 32 3x3``, with the taps of a kernel together."""
    if len(before) != len(after):
        return f"{'x'.join(map(str, before))}{arrow}{'x'.join(map(str, after))}"
    first = [str(a) if a == b else f"{a}{arrow}{b}" for a, b in zip(before[:2], after[:2])]
    taps = "x".join(str(a) if a == b else f"{a}{arrow}{b}" for a, b in zip(before[2:], after[2:]))
    return " ".join([*first, taps] if taps else first)


def fitted(name: str, width: int) -> str:
    """Shorten the path of a layer to some cells, from the front, where it tells least.

    Components become their first letter and the number at their end, as far as needed: what is left still says which
    block it is.

    >>> fitted("features.denseblock3.denselayer36.conv2", 24)
    'f.d3.denselayer36.conv2'
    >>> fitted("encoder.layer.11.attention.self.query", 30)
    'e.l.11.attention.self.query'
    """
    name = "".join(c if c.isprintable() else "?" for c in name)
    parts = name.split(".")
    for i in range(len(parts) - 1):
        if cell_len(".".join(parts)) <= width:
            break
        parts[i] = _initial(parts[i])
    name = ".".join(parts)
    if cell_len(name) <= width:
        return name
    number = re.search(r"\d*$", parts[-1])
    end = ".." + (number[0] if number else "")
    if width - cell_len(".".join([*parts[:-1], end])) >= 4:
        return set_cell_size(name, width - len(end)).rstrip() + end
    while cell_len(name) > max(width - 2, 0):
        name = name[1:]
    return set_cell_size(".." + name, width).rstrip() if width > 2 else set_cell_size(name, width)


def _initial(part: str) -> str:
    number = re.search(r"\d+$", part)
    digits = number[0] if number else ""
    return part if part == digits else part[:1] + digits
