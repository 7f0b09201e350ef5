"""Checkpoints: a reference becomes a `Checkpoint`, a `Checkpoint` a list of `MatrixRef`, a `MatrixRef` a tensor.

Names are imported when they are first used: a `Selection` is available without the modules that read files.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scanner.checkpoint.differences import difference as difference
    from scanner.checkpoint.formats import Format as Format
    from scanner.checkpoint.formats import register_format as register_format
    from scanner.checkpoint.inventory import list_matrices as list_matrices
    from scanner.checkpoint.model import ROLES as ROLES
    from scanner.checkpoint.model import Checkpoint as Checkpoint
    from scanner.checkpoint.model import Inventory as Inventory
    from scanner.checkpoint.model import MatrixKey as MatrixKey
    from scanner.checkpoint.model import MatrixRef as MatrixRef
    from scanner.checkpoint.model import Selection as Selection
    from scanner.checkpoint.model import Skipped as Skipped
    from scanner.checkpoint.model import TensorEntry as TensorEntry
    from scanner.checkpoint.model import TieCheck as TieCheck
    from scanner.checkpoint.opening import identified as identified
    from scanner.checkpoint.opening import open_checkpoint as open_checkpoint
    from scanner.checkpoint.reading import read_matrices as read_matrices
    from scanner.checkpoint.reading import read_matrix as read_matrix
    from scanner.checkpoint.structure.matching import match_matrices as match_matrices
    from scanner.checkpoint.structure.ties import resolve_ties as resolve_ties

_LAZY = {
    "ROLES": "model",
    "Checkpoint": "model",
    "Format": "formats",
    "Inventory": "model",
    "MatrixKey": "model",
    "MatrixRef": "model",
    "Selection": "model",
    "Skipped": "model",
    "TensorEntry": "model",
    "TieCheck": "model",
    "difference": "differences",
    "identified": "opening",
    "list_matrices": "inventory",
    "match_matrices": "structure.matching",
    "open_checkpoint": "opening",
    "read_matrices": "reading",
    "read_matrix": "reading",
    "register_format": "formats",
    "resolve_ties": "structure.ties",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'scanner.checkpoint' has no attribute {name!r}")
    return getattr(importlib.import_module(f"scanner.checkpoint.{_LAZY[name]}"), name)
