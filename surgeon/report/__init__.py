"""Before and after, honestly counted."""

from surgeon.report.compare import compare
from surgeon.report.records import Environment, GroupRow, Latency, LayerRow, Totals
from surgeon.report.report import Report

__all__ = ["Environment", "GroupRow", "Latency", "LayerRow", "Report", "Totals", "compare"]
