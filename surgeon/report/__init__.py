"""Before and after, honestly counted."""

from surgeon.report.compare import compare
from surgeon.report.records import Environment, GroupRow, Latency, LayerRow, Totals
from surgeon.report.report import Report
from surgeon.report.shares import Share
from surgeon.report.text import Whole
from surgeon.report.tracking import Tracker

__all__ = ["Environment", "GroupRow", "Latency", "LayerRow", "Report", "Share", "Totals", "Tracker", "Whole", "compare"]
