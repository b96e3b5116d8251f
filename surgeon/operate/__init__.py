"""Cut: apply a plan to a module, and to what training keeps beside it."""

from surgeon.operate.migrate import migrate
from surgeon.operate.operate import operate
from surgeon.operate.select import select

__all__ = ["migrate", "operate", "select"]
