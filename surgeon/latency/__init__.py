"""Latency: measure models, model what each op costs as its widths shrink, and cut until a measured bound is kept."""

from surgeon.latency.backends import BACKENDS
from surgeon.latency.cache import Cache
from surgeon.latency.measure import Measurement, measure
from surgeon.latency.model import calibrate, latency_cost
from surgeon.latency.within import Round, Timed, within_latency

__all__ = [
    "BACKENDS",
    "Cache",
    "Measurement",
    "Round",
    "Timed",
    "calibrate",
    "latency_cost",
    "measure",
    "within_latency",
]
