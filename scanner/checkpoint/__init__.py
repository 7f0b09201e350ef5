"""Checkpoints: a reference becomes a `Checkpoint`, a `Checkpoint` a list of `MatrixRef`, a `MatrixRef` a tensor."""

from scanner.checkpoint.differences import difference
from scanner.checkpoint.inventory import list_matrices
from scanner.checkpoint.model import (
    ROLES,
    Checkpoint,
    Inventory,
    MatrixRef,
    Selection,
    Skipped,
    TensorEntry,
)
from scanner.checkpoint.opening import open_checkpoint
from scanner.checkpoint.reading import read_matrices, read_matrix
from scanner.checkpoint.structure.matching import match_matrices

__all__ = [
    "ROLES",
    "Checkpoint",
    "Inventory",
    "MatrixRef",
    "Selection",
    "Skipped",
    "TensorEntry",
    "difference",
    "list_matrices",
    "match_matrices",
    "open_checkpoint",
    "read_matrices",
    "read_matrix",
]
