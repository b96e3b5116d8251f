"""Runs over calibration data: forward passes on tape, contractions as matrix products, streamed moments."""

from surgeon.calibrate.contraction import Contraction, contractions
from surgeon.calibrate.ridge import Moments, Sums
from surgeon.calibrate.tape import Leaf, Player, Slot, Step, Tape, aligned, record

__all__ = [
    "Contraction",
    "Leaf",
    "Moments",
    "Player",
    "Slot",
    "Step",
    "Sums",
    "Tape",
    "aligned",
    "contractions",
    "record",
]
