"""A finished matrix on its way from a worker to a committed scan: its rows as the bytes of one Arrow file.

The rows of `vectors` are the file's, the row of `matrices` lies in its metadata: one file, which is there or is not. Arrow's own
format, since a part is written once, read once and removed: Parquet would take ten times as long for both.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from scanner.store.tables import conform

SUFFIX = ".arrow"

_KEY = b"rmtscan.key"
_MATRIX = b"rmtscan.matrix"
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")  # a fourth of the size, for a tenth of a millisecond per 100 kB


class DamagedPartError(ValueError):
    """The bytes are not those of a whole part: cut off by a power failure, say."""


@dataclass(frozen=True, kw_only=True)
class MatrixRow:
    """What `read_matrix_row` finds without the vectors."""

    key: str
    row: pa.Table


def finished_part(scan_id: str, key: str, matrices: pa.Table, vectors: pa.Table) -> bytes:
    """Pack one matrix: its one row of `matrices` and its rows of `vectors`, which are sorted by k.

    Raises:
        ValueError: not one row of `matrices`, rows of another scan, or columns that do not fit the schemas.
    """
    matrices = rows_of_scan(scan_id, "matrices", matrices)
    vectors = rows_of_scan(scan_id, "vectors", vectors)
    if matrices.num_rows != 1:
        raise ValueError(f"{key!r}: one row of table 'matrices' expected, not {matrices.num_rows}")
    if not _ascending(vectors["k"]):
        vectors = vectors.sort_by("k")
    metadata = {_KEY: key.encode("utf-8", "surrogatepass"), _MATRIX: base64.b64encode(_packed(matrices))}
    return _packed(vectors.replace_schema_metadata(metadata), _COMPRESSED)


def rows_of_scan(scan_id: str, name: str, table: pa.Table) -> pa.Table:
    """The table with the columns of `name`; ValueError where they do not fit or rows of another scan are among them."""
    table = conform(name, table)
    others = set(pc.unique(table["scan_id"]).to_pylist()) - {scan_id}
    if others:
        raise ValueError(f"table {name!r} holds rows of other scans than {scan_id!r}: {sorted(others)}")
    return table


def read_matrix_row(part: bytes | None) -> MatrixRow | None:
    """Key and row of `matrices`; None where the part is gone (None), or damaged by a power cut: its matrix is not finished."""
    if part is None:
        return None
    try:
        metadata = _opened(part).schema.metadata or {}
        row = _opened(base64.b64decode(metadata[_MATRIX])).read_all()
        return MatrixRow(key=metadata[_KEY].decode("utf-8", "surrogatepass"), row=row)
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def read_vectors(part: bytes) -> pa.Table:
    """The rows of `vectors`, k ascending. Raises DamagedPartError."""
    try:
        return _opened(part).read_all().replace_schema_metadata(None)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedPartError(str(error)) from error


def _ascending(ranks: pa.ChunkedArray) -> bool:
    return len(ranks) < 2 or bool(pc.all(pc.less_equal(ranks[:-1], ranks[1:])).as_py())


def _packed(table: pa.Table, options: pa.ipc.IpcWriteOptions | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=options) as file:
        file.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def _opened(part: bytes) -> pa.ipc.RecordBatchFileReader:
    return pa.ipc.open_file(pa.BufferReader(part))
