"""From an analysis to the rows of the tables: which column holds what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from scanner.checkpoint import MatrixRef
from scanner.rmt.analysis import Analysis
from scanner.store.tables import SCHEMAS, pack, unpack
from scanner.store.tables import rows as build

__all__ = ["control_rows", "failure_row", "matrix_row", "pack", "unpack", "vector_rows", "warm_up"]

if TYPE_CHECKING:
    from scanner.engine.scan import ControlTask, MatrixTask


def _place(task: MatrixTask, ref: MatrixRef) -> dict[str, object]:
    """The columns that say where a row belongs."""
    return {
        "scan_id": task.scan_id,
        "model": task.model,
        "revision": task.revision,
        "tensor": ref.tensor,
        "stack": ref.stack,
        "layer": ref.layer,
        "role": ref.role,
        "head": ref.head,
        "expert": ref.expert,
        "module": ref.module,
        "rows": ref.rows,
        "cols": ref.cols,
    }


def _known(name: str, columns: Mapping[str, object]) -> dict[str, object]:
    """The columns that the table has."""
    return {column: value for column, value in columns.items() if column in SCHEMAS[name].names}


def warm_up(analysis: Analysis) -> None:
    """Load what building rows loads (pyarrow looks for pandas at the first array)."""
    columns = _known("controls", analysis.vector_columns())
    build("controls", columns, len(analysis.singular_values))


def vector_rows(task: MatrixTask, ref: MatrixRef, analysis: Analysis) -> pa.Table:
    """One row of `vectors` for every singular triplet, k ascending."""
    return build("vectors", _place(task, ref) | analysis.vector_columns(), len(analysis.singular_values))


def matrix_row(
    task: MatrixTask, ref: MatrixRef, analysis: Analysis, *, device: str, measured: Mapping[str, object]
) -> pa.Table:
    """The one row of `matrices`."""
    other = {"role_source": ref.role_source, "dtype": ref.dtype, "device": device}
    return build("matrices", _place(task, ref) | analysis.matrix_columns() | other | dict(measured), 1)


def failure_row(task: MatrixTask, ref: MatrixRef, *, stage: str, error: str, message: str) -> pa.Table:
    """The one row of `failures` of a matrix that could not be analysed."""
    columns = _known("failures", _place(task, ref)) | {"stage": stage, "error": error, "message": message}
    return build("failures", columns, 1)


def control_rows(task: ControlTask, analysis: Analysis) -> pa.Table:
    """One row of `controls` for every singular triplet of a control."""
    place = {"rows": task.rows, "cols": task.cols, "ensemble": task.ensemble, "seed": task.seed}
    columns = place | _known("controls", analysis.vector_columns())
    return build("controls", columns, len(analysis.singular_values))
