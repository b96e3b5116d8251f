"""Record one forward pass: calls, module paths, source lines, and where each size came from."""

from surgeon.trace.integers import Arithmetic, Attribute, Comparison, Expression, Power, Tracked, Width, evaluate, solve
from surgeon.trace.recorder import Call, Listener, record

__all__ = [
    "Arithmetic",
    "Attribute",
    "Call",
    "Comparison",
    "Expression",
    "Listener",
    "Power",
    "Tracked",
    "Width",
    "evaluate",
    "record",
    "solve",
]
