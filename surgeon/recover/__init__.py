"""Win back what a cut lost, without training: refit what stays."""

from surgeon.recover.recover import METHODS, Recovery, check_method, recover
from surgeon.recover.refit import Refit

__all__ = ["METHODS", "Recovery", "Refit", "check_method", "recover"]
