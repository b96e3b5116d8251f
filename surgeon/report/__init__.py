"""Before and after, honestly counted."""

from surgeon.report.report import LayerRow, Report, Totals, compare

__all__ = ["LayerRow", "Report", "Totals", "compare"]
