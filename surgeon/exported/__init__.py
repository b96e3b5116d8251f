"""Programs of ``torch.export``: a module that runs one, and a program made of it again."""

from surgeon.exported.program import Program, load
from surgeon.exported.rebuild import rebuild

__all__ = ["Program", "load", "rebuild"]
