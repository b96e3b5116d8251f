"""Win back what a cut lost, without training: refit what stays."""

from surgeon.recover.fold import Fold
from surgeon.recover.recover import METHODS, Recovery, recover
from surgeon.recover.refit import Refit

__all__ = ["METHODS", "Fold", "Recovery", "Refit", "recover"]
