"""One result as files of its own, wherever its rows are: for merging stores and for publishing."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any

import pyarrow as pa

from scanner.store.files import StoreFiles
from scanner.store.groups import read_result
from scanner.store.row_groups import write_row_groups
from scanner.store.tables import TABLES, complete, described, file_metadata, json_object


def metadata_of(row: dict[str, Any]) -> dict[str, str]:
    """Return the key-value metadata of the files of a result, which a group does not keep, from the row that commits it."""
    version = str(row.get("scanner_version") or "")
    return file_metadata(json_object(row.get("method"))) | {"rmtscan.scanner_version": version}


def write_rows(
    files: StoreFiles,
    table: str,
    result: str,
    sink: IO[bytes],
    metadata: dict[str, str],
    change: Callable[[pa.Table], pa.Table] = lambda rows: rows,
) -> int:
    """Write the rows of a result as a Parquet file and return their number.

    Args:
        files: the store that has the result.
        table: the table.
        result: id of the result.
        sink: where the file is written.
        metadata: key-value metadata of the file.
        change: what is done to the rows before they are written.

    Raises:
        StoreError: the rows are damaged or cannot be read.
    """
    schema = TABLES[table].described.with_metadata(metadata)
    parts = (described(table, change(complete(table, part))) for part in read_result(files, table, result))
    return write_row_groups(sink, schema, parts)
