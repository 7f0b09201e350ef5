"""The HTML report of a store: findings as sentences, figures, tables, and the provenance of the results, in one file."""

from scanner.report.page import Report, write_report

__all__ = ["Report", "write_report"]
