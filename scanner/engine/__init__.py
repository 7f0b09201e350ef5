"""Ray: tasks, the pool of workers that runs them, and the life cycle of a run that survives the loss of any worker.

Names are imported when they are first used, so that options and help need neither Ray nor PyTorch. The functions `scan` and
`compare` are in the modules of the same names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scanner.engine.compare import ComparisonReport as ComparisonReport
    from scanner.engine.method import Method as Method
    from scanner.engine.options import PoolOptions as PoolOptions
    from scanner.engine.report import ModelReport as ModelReport
    from scanner.engine.report import ScanReport as ScanReport
    from scanner.engine.work import Observer as Observer

    ScanObserver = Observer

_LAZY = {
    "ComparisonReport": ("scanner.engine.compare", "ComparisonReport"),
    "Method": ("scanner.engine.method", "Method"),
    "ModelReport": ("scanner.engine.report", "ModelReport"),
    "Observer": ("scanner.engine.work", "Observer"),
    "PoolOptions": ("scanner.engine.options", "PoolOptions"),
    "ScanObserver": ("scanner.engine.work", "Observer"),
    "ScanReport": ("scanner.engine.report", "ScanReport"),
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)
