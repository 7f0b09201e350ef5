"""The rows of a model as CSV or JSON for programs that know neither infinity nor NaN: such values are empty or null."""

from __future__ import annotations

from typing import Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from scanner.checkpoint.names import printable
from scanner.errors import ConfigError, ScannerError
from scanner.export.answers import answer_file
from scanner.export.matrices import SQL
from scanner.store import Store

Table = Literal["matrices", "vectors"]
TABLES: tuple[Table, ...] = get_args(Table)


def flat_csv(store: Store, model: str, *, table: Table = "matrices") -> str:
    """Return the rows of a model as CSV with a header; values that are null, infinite or NaN are empty.

    Names come from a checkpoint: control characters are escaped, and `'` stands before a text that a spreadsheet would run.

    Raises:
        ConfigError: there is no such table.
        ScannerError: the model has no rows.
    """
    return answer_file(_finite(_rows(store, model, table)), ".csv").decode()


def flat_json(store: Store, model: str, *, table: Table = "matrices") -> str:
    """Return the rows of a model as a JSON array of objects; values that are infinite or NaN are null.

    Raises:
        ConfigError: there is no such table.
        ScannerError: the model has no rows.
    """
    return answer_file(_rows(store, model, table), ".json").decode()


def _rows(store: Store, model: str, table: Table) -> pa.Table:
    if table not in TABLES:
        raise ConfigError("table", f"must be one of {', '.join(TABLES)}, got {table!r}")
    found = store.sql((SQL / f"all_{table}.sql").read_text("utf-8"), {"model": model})
    if not found.num_rows:
        raise ScannerError(f"{printable(model)} has no rows in {store.url}")
    return found


def _finite(table: pa.Table) -> pa.Table:
    """Return a table in which infinite values and NaN are null."""
    for position, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            column = table.column(position)
            kept = pc.if_else(pc.is_finite(column), column, pa.scalar(None, field.type))
            table = table.set_column(position, field, kept)
    return table
