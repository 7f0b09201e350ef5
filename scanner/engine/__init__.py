"""Ray: tasks, the pool of workers that runs them, and the life cycle of a run that survives the loss of any worker."""

from scanner.engine.compare import ComparisonReport, compare
from scanner.engine.method import Method
from scanner.engine.pool import PoolOptions
from scanner.engine.run import Observer
from scanner.engine.scan import ModelReport, ScanReport, scan

ScanObserver = Observer

__all__ = [
    "ComparisonReport",
    "Method",
    "ModelReport",
    "Observer",
    "PoolOptions",
    "ScanObserver",
    "ScanReport",
    "compare",
    "scan",
]
