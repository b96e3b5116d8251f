"""How much each group matters: cut it alone, evaluate, and keep the drop."""

from surgeon.sensitivity.curves import Curve, Sensitivity
from surgeon.sensitivity.sensitivity import RATIOS, sensitivity

__all__ = ["RATIOS", "Curve", "Sensitivity", "sensitivity"]
