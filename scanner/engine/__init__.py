"""Ray: the plan of a scan, the workers that carry it out and the driver that survives the loss of any of them."""

from scanner.engine.compare import ComparisonReport, compare
from scanner.engine.method import Method
from scanner.engine.pool import PoolOptions
from scanner.engine.scan import ModelReport, ScanObserver, ScanReport, scan

__all__ = ["ComparisonReport", "Method", "ModelReport", "PoolOptions", "ScanObserver", "ScanReport", "compare", "scan"]
