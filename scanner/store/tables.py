"""Tables of a store as Arrow: schemas, building and checking rows, and the metadata of Parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from scanner.rmt.columns import Column
from scanner.store.definitions import (
    MATRIX_KEY,
    TABLES,
    Table,
    experiment_tables,
    fleet_tables,
    listed_tables,
    metric_columns,
    shared_tables,
    tables_of,
    views,
)
from scanner.version import __version__

__all__ = [
    "GROUPED_SCHEMA_VERSION",
    "MATRIX_KEY",
    "SCHEMAS",
    "SCHEMA_VERSION",
    "TABLES",
    "Column",
    "Table",
    "complete",
    "conform",
    "described",
    "experiment_tables",
    "file_metadata",
    "fleet_tables",
    "json_object",
    "listed_tables",
    "lists_of_text",
    "method_in",
    "metric_columns",
    "pack",
    "rows",
    "shared_tables",
    "tables_of",
    "to_json",
    "unpack",
    "views",
]

SCHEMA_VERSION = 1
"""Raised when a column changes its meaning; columns that are only added do not change it."""
GROUPED_SCHEMA_VERSION = 2
"""Schema version of files that hold several results: versions of rmtscan that do not know them must not skip them."""


class _Schemas(Mapping[str, pa.Schema]):
    """Schemas of all tables; those of `matrices` and `vectors` follow the registered metrics."""

    def __getitem__(self, name: str) -> pa.Schema:
        return TABLES[name].schema

    def __iter__(self) -> Iterator[str]:
        return iter(TABLES)

    def __len__(self) -> int:
        return len(TABLES)


SCHEMAS: Mapping[str, pa.Schema] = _Schemas()
"""Name of a table to its Arrow schema."""


def no_rows(name: str) -> pa.Table:
    """Return a table without rows. `pa.Schema.empty_table` would import pandas, which takes a quarter of a second."""
    return pa.Table.from_batches([], SCHEMAS[name])


def rows(name: str, columns: Mapping[str, object], length: int) -> pa.Table:
    """Build rows of a table.

    Args:
        name: name of the table.
        columns: values by column: arrays and lists with one value per row, or single values, which are repeated. NaN becomes null,
            and so do columns that are not given.
        length: number of rows.

    Raises:
        ValueError: the table has no such column, or an array has another length.
    """
    schema = SCHEMAS[name]
    unknown = sorted({*columns} - {*schema.names})
    if unknown:
        raise ValueError(f"table {name!r} has no columns {unknown}")
    return pa.Table.from_arrays([_array(columns.get(field.name), field, length) for field in schema], schema=schema)


def _array(value: object, field: pa.Field, length: int) -> pa.Array | pa.ChunkedArray:
    if isinstance(value, str) or not hasattr(value, "__len__"):
        single = None if isinstance(value, float) and value != value else value
        return pa.repeat(pa.scalar(single, field.type), length)
    array = value if isinstance(value, pa.Array | pa.ChunkedArray) else pa.array(value, from_pandas=True)
    if len(array) != length:
        raise ValueError(f"column {field.name!r} has {len(array)} values for {length} rows")
    return array.cast(field.type)


def pack(table: pa.Table) -> bytes:
    """Serialize a table as an Arrow stream; Ray would rebuild it column by column in Python, ten times slower."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def unpack(packed: bytes) -> pa.Table:
    """Return the table that was packed."""
    return pa.ipc.open_stream(pa.BufferReader(packed)).read_all()


def conform(name: str, table: pa.Table) -> pa.Table:
    """Return the table with the columns of `SCHEMAS[name]` in their order and types.

    Raises:
        ValueError: a column is missing or unknown, a required one has nulls, or a value does not fit its type.
    """
    schema = SCHEMAS[name]
    required = (column for column, field in zip(table.columns, schema, strict=False) if not field.nullable)
    if table.schema.equals(schema) and not any(column.null_count for column in required):
        return table.replace_schema_metadata(None)  # nothing to cast: a cast of every column costs more than the rest
    missing = [column for column in schema.names if column not in table.column_names]
    unknown = [column for column in table.column_names if column not in schema.names]
    if missing or unknown:
        raise ValueError(f"table {name!r}: columns missing {missing}, unknown {unknown}")
    return table.select(schema.names).replace_schema_metadata(None).cast(schema)


def complete(name: str, table: pa.Table) -> pa.Table:
    """Return rows of any version in today's schema: columns that were added later are null, unknown ones are dropped."""
    schema = SCHEMAS[name]
    if table.schema.equals(schema):
        return table.replace_schema_metadata(None)
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def described(name: str, table: pa.Table) -> pa.Table:
    """Return the rows with description and unit in the metadata of every column, for a file that others read."""
    return pa.Table.from_arrays(table.columns, schema=TABLES[name].described)


def file_metadata(method: Mapping[str, object], **more: str) -> dict[str, str]:
    """Return the key-value metadata of a Parquet file: versions, the method as JSON, and `more`, all under `rmtscan.`."""
    values = {"schema_version": str(SCHEMA_VERSION), "scanner_version": __version__, "method": to_json(method)} | more
    return {f"rmtscan.{key}": value for key, value in values.items()}


def method_in(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Return the method in the metadata of a file; empty if there is none."""
    return json_object((metadata or {}).get(b"rmtscan.method"))


def json_object(text: object) -> dict[str, Any]:
    """Return the object in a column with JSON; empty if there is none, or something else: a store may come from anybody."""
    try:
        found = json.loads(text) if isinstance(text, str | bytes) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def lists_of_text(text: object) -> dict[str, list[str]]:
    """Return the lists of names in a column with JSON; what is not one is left out."""
    lists = ((key, value) for key, value in json_object(text).items() if isinstance(value, list))
    return {key: [str(item) for item in value] for key, value in lists}


def to_json(value: object) -> str:
    """Return one line of JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
