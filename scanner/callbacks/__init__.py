"""Callbacks that follow the weights of a model in training, for transformers and Lightning; each is imported when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from scanner.errors import ScannerError

if TYPE_CHECKING:
    from scanner.callbacks.lightning import LightningCallback as LightningCallback
    from scanner.callbacks.monitor import Monitor as Monitor
    from scanner.callbacks.transformers import TransformersCallback as TransformersCallback

_LAZY = {
    "LightningCallback": ("lightning", "pytorch-lightning (or lightning)", "rmtscan[lightning]"),
    "Monitor": ("monitor", "", ""),
    "TransformersCallback": ("transformers", "transformers and accelerate", "rmtscan[experiments]"),
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'scanner.callbacks' has no attribute {name!r}; it has: {', '.join(__all__)}")
    module, needs, extra = _LAZY[name]
    try:
        return getattr(importlib.import_module(f"scanner.callbacks.{module}"), name)
    except ImportError as error:
        if not needs or (error.name or "").startswith("scanner"):
            raise
        raise ScannerError(
            f"{name} needs {needs}, which cannot be imported ({error}): pip install '{extra}'"
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
