"""Win back what a cut lost, without training: refit what stays."""

from surgeon.recover.refit import Refit, refit

__all__ = ["Refit", "refit"]
