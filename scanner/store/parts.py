"""A part: the rows of one finished matrix or pair of matrices, as the bytes of one Arrow file.

The rows of the largest table (`vectors`, `pair_vectors`) are the rows of the file; those of the others are in its metadata. So a
part is one file, which either exists or does not. It is written once, read once and removed; Parquet would take ten times as long
for both.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from scanner.store.tables import complete, conform

SUFFIX = ".arrow"

_KEY = b"rmtscan.key"
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")  # a fourth of the size, for a tenth of a millisecond per 100 kB


class DamagedPartError(ValueError):
    """The bytes are not a complete part; for example, they were cut off by a power failure."""


@dataclass(frozen=True, kw_only=True)
class SmallTables:
    """What `read_small_tables` finds in a part without the rows of its largest table."""

    key: str
    tables: dict[str, pa.Table]


def finished_part(scan_id: str, key: str, matrices: pa.Table, vectors: pa.Table) -> bytes:
    """Pack the rows of one matrix.

    Args:
        scan_id: the scan that the rows belong to.
        key: key of the matrix.
        matrices: its row of table `matrices`.
        vectors: its rows of table `vectors`.

    Raises:
        ValueError: not one row of `matrices`, rows of another scan, or columns that do not fit the schemas.
    """
    matrices = rows_of("scan_id", scan_id, "matrices", matrices)
    vectors = rows_of("scan_id", scan_id, "vectors", vectors)
    return pack_part(key, "vectors", {"matrices": matrices, "vectors": vectors}, one_row="matrices")


def rows_of(id_column: str, id_: str, name: str, table: pa.Table) -> pa.Table:
    """Return the table in the schema of `name`.

    Raises:
        ValueError: the columns do not fit, or rows belong to another scan or comparison.
    """
    table = conform(name, table)
    others = set(pc.unique(table[id_column]).to_pylist()) - {id_}
    if others:
        what = "scans" if id_column == "scan_id" else "comparisons"
        raise ValueError(f"table {name!r} holds rows of other {what} than {id_!r}: {sorted(others)}")
    return table


def pack_part(key: str, largest: str, tables: Mapping[str, pa.Table], *, one_row: str) -> bytes:
    """Pack tables that have their schemas; the rows of `largest` are sorted by k.

    Raises:
        ValueError: the table `one_row` does not have one row.
    """
    if tables[one_row].num_rows != 1:
        raise ValueError(f"{key!r}: one row of table {one_row!r} expected, not {tables[one_row].num_rows}")
    metadata = {
        _metadata_key(name): base64.b64encode(_packed(table)) for name, table in tables.items() if name != largest
    }
    metadata[_KEY] = key.encode("utf-8", "surrogatepass")
    return _packed(sorted_by_rank(tables[largest]).replace_schema_metadata(metadata), _COMPRESSED)


def read_small_tables(part: bytes | None, names: tuple[str, ...]) -> SmallTables | None:
    """Return key and small tables of a part; None if the part is gone (None) or damaged: its matrix is not finished."""
    if part is None:
        return None
    try:
        metadata = _opened(part).schema.metadata or {}
        tables = {
            name: complete(name, _opened(base64.b64decode(metadata[_metadata_key(name)])).read_all()) for name in names
        }
        return SmallTables(key=metadata[_KEY].decode("utf-8", "surrogatepass"), tables=tables)
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def read_largest_table(part: bytes, name: str) -> pa.Table:
    """Return the rows of the largest table, k ascending.

    Raises:
        DamagedPartError: the part is not complete.
    """
    try:
        return complete(name, _opened(part).read_all())
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedPartError(str(error)) from error


def sorted_by_rank(table: pa.Table) -> pa.Table:
    """Return the rows by ascending k."""
    ranks = table["k"]
    ascending = len(ranks) < 2 or pc.all(pc.less_equal(ranks[:-1], ranks[1:])).as_py()
    return table if ascending else table.sort_by("k")


def _metadata_key(table: str) -> bytes:
    # Parts of scans that earlier versions staged have this name.
    return b"rmtscan.matrix" if table == "matrices" else f"rmtscan.table.{table}".encode()


def _packed(table: pa.Table, options: pa.ipc.IpcWriteOptions | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=options) as file:
        file.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def _opened(part: bytes) -> pa.ipc.RecordBatchFileReader:
    return pa.ipc.open_file(pa.BufferReader(part))
