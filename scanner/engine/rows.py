"""From an analysis to the rows of the tables: which column holds what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from scanner.checkpoint import MatrixRef
from scanner.rmt.analysis import Analysis
from scanner.store import SCHEMAS

if TYPE_CHECKING:
    from scanner.engine.scan import ControlTask, MatrixTask

_PER_VECTOR = "region u_ks u_p u_p_local v_ks v_p v_p_local u_ipr v_ipr u_peak v_peak".split()
_PER_MATRIX = (
    "sigma sigma_kind sigma_median sigma_std sigma_init sigma_bulk mp_lower mp_upper outliers_left outliers_right rank mp_ks "
    "spectral_norm frobenius_norm stable_rank effective_rank u_p_mean v_p_mean svd_method svd_residual"
).split()


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


def _table(name: str, columns: dict[str, object], length: int) -> pa.Table:
    """A table with the schema of `name`; scalars are repeated, NaN becomes null ("does not apply" has one spelling)."""
    arrays = []
    for field in SCHEMAS[name]:
        value = columns.get(field.name)
        if hasattr(value, "__len__") and not isinstance(value, str):
            arrays.append(pa.array(value, from_pandas=True).cast(field.type))
        else:
            scalar = None if isinstance(value, float) and value != value else value
            arrays.append(pa.repeat(pa.scalar(scalar, field.type), length))
    return pa.Table.from_arrays(arrays, schema=SCHEMAS[name])


def pack(table: pa.Table) -> bytes:
    """A table as bytes of an Arrow stream: Ray would rebuild it column by column in Python, ten times slower."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def unpack(packed: bytes) -> pa.Table:
    """The table that was packed."""
    return pa.ipc.open_stream(pa.BufferReader(packed)).read_all()


def warm_up(analysis: Analysis) -> None:
    """Load what building rows loads (pyarrow looks for pandas at the first array)."""
    _table("controls", _triplets(analysis), len(analysis.singular_values))


def _triplets(analysis: Analysis) -> dict[str, object]:
    """The columns that hold one value for every singular triplet."""
    measured: dict[str, object] = {name: getattr(analysis, name) for name in _PER_VECTOR}
    return measured | {"k": range(len(analysis.singular_values)), "singular_value": analysis.singular_values}


def vector_rows(task: MatrixTask, ref: MatrixRef, analysis: Analysis) -> pa.Table:
    """One row of `vectors` for every singular triplet, k ascending."""
    return _table("vectors", _place(task, ref) | _triplets(analysis), len(analysis.singular_values))


def matrix_row(
    task: MatrixTask, ref: MatrixRef, analysis: Analysis, *, device: str, measured: Mapping[str, object]
) -> pa.Table:
    """The one row of `matrices`."""
    columns = {name: getattr(analysis, name) for name in _PER_MATRIX}
    other = {"role_source": ref.role_source, "dtype": ref.dtype, "device": device}
    return _table("matrices", _place(task, ref) | columns | other | dict(measured), 1)


def failure_row(task: MatrixTask, ref: MatrixRef, *, stage: str, error: str, message: str) -> pa.Table:
    """The one row of `failures` of a matrix that could not be analysed."""
    return _table("failures", _place(task, ref) | {"stage": stage, "error": error, "message": message}, 1)


def control_rows(task: ControlTask, analysis: Analysis) -> pa.Table:
    """One row of `controls` for every singular triplet of a control."""
    place = {"rows": task.rows, "cols": task.cols, "ensemble": task.ensemble, "seed": task.seed}
    return _table("controls", place | _triplets(analysis), len(analysis.singular_values))
