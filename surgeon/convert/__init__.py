"""Plans from what other tools left: zeros, pruned models, histories."""

from surgeon.convert.history import plan_from_history
from surgeon.convert.pair import plan_from_pair
from surgeon.convert.zeros import plan_from_zeros

__all__ = ["plan_from_history", "plan_from_pair", "plan_from_zeros"]
