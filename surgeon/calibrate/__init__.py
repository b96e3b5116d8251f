"""Runs over calibration data: forward passes on tape, contractions as matrix products, streamed moments."""

from surgeon.calibrate.batches import batches, calibration, fitting, inputs, size
from surgeon.calibrate.contraction import Contraction
from surgeon.calibrate.layers import Layer, contractions, examined, layers
from surgeon.calibrate.noise import noise
from surgeon.calibrate.operand import MOVES
from surgeon.calibrate.ridge import Moments, Sums
from surgeon.calibrate.shared import gathered
from surgeon.calibrate.statistics import drawn, input_moments
from surgeon.calibrate.tape import Leaf, Player, Slot, Step, Tape, aligned, record, replaced

__all__ = [
    "MOVES",
    "Contraction",
    "Layer",
    "Leaf",
    "Moments",
    "Player",
    "Slot",
    "Step",
    "Sums",
    "Tape",
    "aligned",
    "batches",
    "calibration",
    "contractions",
    "drawn",
    "examined",
    "fitting",
    "gathered",
    "input_moments",
    "inputs",
    "layers",
    "noise",
    "record",
    "replaced",
    "size",
]
