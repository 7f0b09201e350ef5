"""Rows of the tables of a scan, built from analyses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from scanner.checkpoint import MatrixRef
from scanner.store.tables import SCHEMAS, no_rows, pack, unpack
from scanner.store.tables import rows as build

__all__ = [
    "control_rows",
    "failure_row",
    "matrix_control_rows",
    "matrix_row",
    "no_control_rows",
    "pack",
    "unpack",
    "vector_rows",
    "warm_up",
]

if TYPE_CHECKING:
    from scanner.engine.tasks import ControlTask, MatrixControlTask, MatrixTask
    from scanner.rmt.analysis import Analysis


def _place(task: MatrixTask | MatrixControlTask, ref: MatrixRef) -> dict[str, object]:
    """Return the columns that identify the scan and the matrix."""
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
    """Select the columns that the table has."""
    return {column: value for column, value in columns.items() if column in SCHEMAS[name].names}


def warm_up(analysis: Analysis) -> None:
    """Load the libraries for building rows (pyarrow looks for pandas at its first array)."""
    columns = _known("controls", analysis.vector_columns())
    build("controls", columns, len(analysis.singular_values))


def vector_rows(task: MatrixTask, ref: MatrixRef, analysis: Analysis) -> pa.Table:
    """Return one row of `vectors` per singular triplet, k ascending."""
    return build("vectors", _place(task, ref) | analysis.vector_columns(), len(analysis.singular_values))


def matrix_row(
    task: MatrixTask, ref: MatrixRef, analysis: Analysis, *, device: str, measured: Mapping[str, object]
) -> pa.Table:
    """Return the row of `matrices`."""
    other = {
        "role_source": ref.role_source,
        "dtype": ref.dtype,
        "device": device,
        "kv_head": ref.kv_head,
        "between": ref.between,
    }
    return build("matrices", _place(task, ref) | analysis.matrix_columns() | other | dict(measured), 1)


def failure_row(
    task: MatrixTask, ref: MatrixRef, *, stage: str, error: str, message: str, transient: bool = False
) -> pa.Table:
    """Return the row of `failures` for a matrix that could not be analyzed; the message says whether it is tried again."""
    kind = "transient: the next scan tries it again" if transient else "permanent: only `force` tries it again"
    told = {"stage": stage, "error": error, "message": f"{message} ({kind})", "transient": transient}
    columns = _known("failures", _place(task, ref)) | told
    return build("failures", columns, 1)


def control_rows(task: ControlTask, analysis: Analysis) -> pa.Table:
    """Return one row of `controls` per singular triplet of a control."""
    place = {"rows": task.rows, "cols": task.cols, "ensemble": task.ensemble, "seed": task.seed}
    columns = place | _known("controls", analysis.vector_columns())
    return build("controls", columns, len(analysis.singular_values))


def matrix_control_rows(task: MatrixControlTask, ensemble: str, seed: int, analysis: Analysis) -> pa.Table:
    """Return one row of `matrix_controls` per singular triplet of a control of a matrix."""
    place = _place(task, task.ref) | {"ensemble": ensemble, "seed": seed}
    columns = _known("matrix_controls", place | analysis.vector_columns())
    return build("matrix_controls", columns, len(analysis.singular_values))


def no_control_rows() -> pa.Table:
    """Return no row of `matrix_controls`: a file of them says that there is nothing to draw from."""
    return no_rows("matrix_controls")
