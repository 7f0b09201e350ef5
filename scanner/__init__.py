"""Where in a model is what it learned? Every weight matrix of a checkpoint, measured against random matrix theory.

`analyze(array)` does one matrix, `analyze_model(model)` a model in memory, `scan(reference)` whole checkpoints on Ray,
`open_store(url)` asks the results with SQL.
Names are imported when first used: `import scanner` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from scanner.errors import CheckpointError, QueryError, ScannerError, StoreError
from scanner.version import __version__

if TYPE_CHECKING:
    from scanner.checkpoint import Selection as Selection
    from scanner.checkpoint import open_checkpoint as open_checkpoint
    from scanner.engine import ComparisonReport as ComparisonReport
    from scanner.engine import Method as Method
    from scanner.engine import PoolOptions as PoolOptions
    from scanner.engine import ScanReport as ScanReport
    from scanner.engine.compare import compare as compare
    from scanner.engine.scan import scan as scan
    from scanner.memory import ModelAnalysis as ModelAnalysis
    from scanner.memory import analyze_model as analyze_model
    from scanner.rmt.analysis import Analysis as Analysis
    from scanner.rmt.analysis import analyze as analyze
    from scanner.store import Store as Store
    from scanner.store import open_store as open_store

_LAZY = {
    "Analysis": "scanner.rmt.analysis",
    "ComparisonReport": "scanner.engine",
    "Method": "scanner.engine",
    "ModelAnalysis": "scanner.memory",
    "PoolOptions": "scanner.engine",
    "ScanReport": "scanner.engine",
    "Selection": "scanner.checkpoint",
    "Store": "scanner.store",
    "analyze": "scanner.rmt.analysis",
    "analyze_model": "scanner.memory",
    "compare": "scanner.engine.compare",
    "open_checkpoint": "scanner.checkpoint",
    "open_store": "scanner.store",
    "scan": "scanner.engine.scan",
}

__all__ = [*_LAZY, "CheckpointError", "QueryError", "ScannerError", "StoreError", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'scanner' has no attribute {name!r}; it has: {', '.join(sorted(__all__))}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
