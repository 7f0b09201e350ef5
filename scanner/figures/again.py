"""Matrices that are read again from where they were scanned, for figures that need singular vectors themselves."""

from __future__ import annotations

from typing import Any

from scanner.checkpoint import ROLES, MatrixRef, Selection, list_matrices, open_checkpoint, read_matrix
from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.figures.choice import Matrix
from scanner.rmt.decomposition import Decomposition, LowRank, decompose, decompose_low_rank
from scanner.store import Store
from scanner.store.references import reference_of


def scan_of(store: Store, matrix: Matrix) -> dict[str, Any]:
    """The row of `scans` that a matrix belongs to.

    Raises:
        ScannerError: it was removed in the meantime.
    """
    row = store.scan_row(matrix.scan_id)
    if row is None:
        raise ScannerError(f"scan {matrix.scan_id!r} is no longer in {store.url}")
    return row


def decomposed(store: Store, matrix: Matrix) -> Decomposition:
    """The singular value decomposition of a scanned matrix, read again from its checkpoint.

    Raises:
        ScannerError: the checkpoint is no longer there, or is another one than was scanned.
    """
    scan = scan_of(store, matrix)
    name, reference = printable(matrix.model), reference_of(store, scan)
    source = printable(reference)
    try:
        checkpoint = open_checkpoint(reference)
    except ScannerError as error:
        raise ScannerError(f"{name!r} must be read again from {source}: {error}") from error
    if scan["identity"] and checkpoint.identity != scan["identity"]:
        raise ScannerError(f"{source} is not what was scanned as {name!r}: its content has changed, scan it again")
    read = read_matrix(checkpoint.source, _find(list_matrices(checkpoint, _selection(matrix)).matrices, matrix))
    return decompose_low_rank(read) if isinstance(read, LowRank) else decompose(read)


def _selection(matrix: Matrix) -> Selection:
    layers = () if matrix.layer is None else (matrix.layer,)
    only = (matrix.role,) if matrix.role in ROLES else ()
    return Selection(only=only, layers=layers, heads=matrix.head is not None)


def _find(refs: tuple[MatrixRef, ...], matrix: Matrix) -> MatrixRef:
    wanted = (matrix.tensor, matrix.role, matrix.head, matrix.expert)
    for ref in refs:
        if (ref.tensor, ref.role, ref.head, ref.expert) == wanted:
            return ref
    raise ScannerError(f"{printable(matrix.model)!r} no longer has the tensor {printable(matrix.tensor)!r}")
