"""Ray: tasks, the pool of workers that runs them, and the life cycle of a run that survives the loss of any worker.

Names are imported when they are first used, so that the command line can show its help without loading Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scanner.engine.compare import ComparisonReport as ComparisonReport
    from scanner.engine.compare import compare as compare
    from scanner.engine.method import Method as Method
    from scanner.engine.pool import PoolOptions as PoolOptions
    from scanner.engine.scan import ModelReport as ModelReport
    from scanner.engine.scan import ScanReport as ScanReport
    from scanner.engine.scan import scan as scan
    from scanner.engine.work import Observer as Observer
    from scanner.engine.work import Observer as ScanObserver  # noqa: F401

_LAZY = {
    "ComparisonReport": ("scanner.engine.compare", "ComparisonReport"),
    "Method": ("scanner.engine.method", "Method"),
    "ModelReport": ("scanner.engine.scan", "ModelReport"),
    "Observer": ("scanner.engine.work", "Observer"),
    "PoolOptions": ("scanner.engine.pool", "PoolOptions"),
    "ScanObserver": ("scanner.engine.work", "Observer"),
    "ScanReport": ("scanner.engine.scan", "ScanReport"),
    "compare": ("scanner.engine.compare", "compare"),
    "scan": ("scanner.engine.scan", "scan"),
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)
