"""Checkpoints: a reference becomes a `Checkpoint`, a `Checkpoint` a list of `MatrixRef`, a `MatrixRef` a tensor."""

from scanner.checkpoint.differences import difference
from scanner.checkpoint.formats import Format, register_format
from scanner.checkpoint.inventory import list_matrices
from scanner.checkpoint.model import (
    ROLES,
    Checkpoint,
    Inventory,
    MatrixKey,
    MatrixRef,
    Selection,
    Skipped,
    TensorEntry,
    TieCheck,
)
from scanner.checkpoint.opening import open_checkpoint
from scanner.checkpoint.reading import read_matrices, read_matrix
from scanner.checkpoint.structure.matching import match_matrices
from scanner.checkpoint.structure.ties import resolve_ties

__all__ = [
    "ROLES",
    "Checkpoint",
    "Format",
    "Inventory",
    "MatrixKey",
    "MatrixRef",
    "Selection",
    "Skipped",
    "TensorEntry",
    "TieCheck",
    "difference",
    "list_matrices",
    "match_matrices",
    "open_checkpoint",
    "read_matrices",
    "read_matrix",
    "register_format",
    "resolve_ties",
]
