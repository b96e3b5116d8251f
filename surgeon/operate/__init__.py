"""Cut: apply a plan to a module."""

from surgeon.operate.operate import operate
from surgeon.operate.select import select

__all__ = ["operate", "select"]
