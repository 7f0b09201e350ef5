"""The views of a store as one DuckDB file with tables, which any DuckDB client opens without rmtscan and without the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from scanner.errors import StoreError
from scanner.store.database import one_line
from scanner.store.store import Store
from scanner.store.tables import TABLES, views

STORAGE = "v1.0.0"
"""Format of the file: DuckDB writes the newest by default, which earlier clients refuse."""

_SQL = Path(__file__).resolve().parent / "sql"
_ALL = "all_"


@dataclass(frozen=True, kw_only=True)
class Written:
    """One table or view of the file."""

    name: str
    rows: int


def write_duckdb(
    store: Store, path: str | os.PathLike[str], *, progress: Callable[[str], None] = lambda _: None
) -> list[Written]:
    """Write the views of a store into a DuckDB file, which is replaced if it exists.

    The file has a table for each view of `scanner.store.tables.views()`, with the descriptions of the columns as comments. A
    view of all results (`all_matrices`, ...) that holds nothing else than the newest is a view in the file, too.

    Args:
        store: the store to read; its vectors are read scan by scan.
        path: the file to write.
        progress: called with the name of each table.

    Raises:
        StoreError: the store cannot be read, or the file cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        written = _write(store, temporary, progress)
        temporary.replace(target)
    except (duckdb.Error, OSError) as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise StoreError(f"{str(target)!r} cannot be written: {told}") from error
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_name(f"{temporary.name}.wal").unlink(missing_ok=True)
    return written


def _write(store: Store, path: Path, progress: Callable[[str], None]) -> list[Written]:
    written: dict[str, int] = {}
    path.unlink(missing_ok=True)
    connection = duckdb.connect(str(path), config={"storage_compatibility_version": STORAGE})
    try:
        names = sorted(views(), key=lambda name: name.startswith(_ALL))  # `all_` views may refer to the others
        for name in names:
            progress(name)
            newest = name.removeprefix(_ALL)
            count = _count(store, name)
            if name != newest and count == written[newest]:
                connection.execute(_statement("file_view", name=_quoted(name), of=_quoted(newest)))
            else:
                _table(connection, name, _parts(store, name))
                _comments(connection, name, newest)
            written[name] = count
    finally:
        connection.close()
    return [Written(name=name, rows=written[name]) for name in views()]


def _count(store: Store, name: str) -> int:
    [row] = store.sql(_statement("file_count", name=_quoted(name))).to_pylist()
    return int(row["rows"])


def _parts(store: Store, name: str) -> Iterator[pa.Table]:
    """Yield the rows of a view: an empty table first, then the rows, those of scans scan by scan."""
    yield store.sql(_statement("file_empty", name=_quoted(name)))
    if TABLES[name.removeprefix(_ALL)].listed_by == "scans":
        for scan_id in store.committed():
            yield store.sql(_statement("file_scan", name=_quoted(name)), {"scan_id": scan_id})
    else:
        yield store.sql(_statement("file_rows", name=_quoted(name)))


def _table(connection: duckdb.DuckDBPyConnection, name: str, parts: Iterator[pa.Table]) -> None:
    for number, rows in enumerate(parts):
        connection.register("rows", rows)
        connection.execute(_statement("file_append" if number else "rows", quoted=_quoted(name)))
        connection.unregister("rows")


def _comments(connection: duckdb.DuckDBPyConnection, name: str, table: str) -> None:
    definition = TABLES[table]
    connection.execute(_statement("file_about", name=_quoted(name), text=_literal(definition.row)))
    for column in definition.columns:
        unit = f" ({column.unit})" if column.unit else ""
        text = _literal(f"{column.description}{unit}")
        place = f"{_quoted(name)}.{_quoted(column.name)}"
        connection.execute(_statement("file_comment", name=place, text=text))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _statement(file: str, **names: str) -> str:
    """Return a file of `sql/`; the names and texts that are inserted come from the definitions of the tables."""
    text = (_SQL / f"{file}.sql").read_text("utf-8")
    values: Mapping[str, str] = names
    for placeholder, value in values.items():
        text = text.replace(f"{{{placeholder}}}", value)
    return text
