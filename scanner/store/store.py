"""A store: opened by URL, asked which scans it holds, written by scans, and queried."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from scanner.errors import StoreError
from scanner.extensions import load_extensions
from scanner.store import heartbeat
from scanner.store.database import Params, connect, read, refuse_all_but_select
from scanner.store.files import StoreFiles
from scanner.store.heartbeat import Heartbeat
from scanner.store.queries import Query, find_query, load_queries
from scanner.store.staging import ROW_GROUP, ComparisonWriter, ScanWriter, Unfinished, is_safe_id, unfinished_scan
from scanner.store.tables import (
    SCHEMAS,
    complete,
    conform,
    described,
    experiment_tables,
    file_metadata,
    listed_tables,
    method_in,
)

_FOLDERS = ("scans", "controls", "staging")
_STAGED = "staging-experiments"
_ENSEMBLE = re.compile(r"[a-z][a-z0-9_]*")


def open_store(url: str, *, create: bool = False) -> "Store":
    """The store under a local path or fsspec URL.

    Args:
        url: a local path, or a URL such as `s3://bucket/results`.
        create: make it if it does not exist, and check that it can be written.

    Raises:
        StoreError: it does not exist (without `create`), is a file, cannot be reached, or (with `create`) not written.
    """
    load_extensions()
    files = StoreFiles(url)
    if files.is_file(""):
        raise StoreError(f"store {files.url!r} is a file: name a folder with --store")
    if create:
        files.prepare("scans")
    elif not any(files.is_folder(folder) for folder in _FOLDERS):
        raise StoreError(f"there is no store at {files.url!r}: 'rmtscan scan REF --store {url}' makes one")
    return Store(files)


class Store:
    """Committed scans, and the way to add more. Not to be shared between threads; open one in each."""

    def __init__(self, files: StoreFiles) -> None:
        self.url: str = files.url
        """Absolute path, or URL."""
        self._files = files
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._version: object = None

    def scan_row(self, scan_id: str) -> dict[str, object] | None:
        """The row of table `scans`, or None if no such scan is committed.

        Raises:
            StoreError: the store cannot be read.
        """
        table = self._files.read(f"scans/{scan_id}.parquet") if is_safe_id(scan_id) else None
        return None if table is None else table.to_pylist()[0]

    def committed(self) -> list[str]:
        """Ids of the committed scans, sorted.

        Raises:
            StoreError: the store cannot be read.
        """
        return self._files.names("scans")

    def unfinished(self) -> list[Unfinished]:
        """Scans that have staged parts and no commit, sorted by id.

        Raises:
            StoreError: the store cannot be read.
        """
        begun = sorted({*self._files.folders("staging")} - {*self.committed()})
        return [unfinished_scan(self._files, scan_id) for scan_id in begun]

    def writer(self, scan_id: str, *, method: Mapping[str, object], model: str) -> ScanWriter:
        """Begin or resume a scan.

        Args:
            scan_id: identity of what is scanned and how; letters, digits, `.`, `_` and `-`.
            method: every parameter that went into the id, written into every file.
            model: the model's name.

        Raises:
            ValueError: the id is not a safe file name.
            StoreError: the store cannot be read.
        """
        return ScanWriter(self._files, scan_id, method=method, model=model)

    def control_path(self, rows: int, cols: int, ensemble: str, seed: int) -> str:
        """Where a random control of that shape, ensemble and seed lies, relative to the store.

        Raises:
            ValueError: the ensemble's name is not made of small letters, digits and `_`.
        """
        if _ENSEMBLE.fullmatch(ensemble) is None:
            raise ValueError(f"ensemble {ensemble!r}: small letters, digits and '_' only")
        return f"controls/{int(rows)}x{int(cols)}-{ensemble}-{int(seed)}.parquet"

    def has_control(self, rows: int, cols: int, ensemble: str, seed: int) -> bool:
        """Whether that control has been made.

        Raises:
            StoreError: the store cannot be read.
        """
        return self._files.is_file(self.control_path(rows, cols, ensemble, seed))

    def write_control(self, table: pa.Table, rows: int, cols: int, ensemble: str, seed: int) -> None:
        """Write one control, one row per singular triplet.

        Raises:
            ValueError: the columns do not fit the schema.
            StoreError: the store is full or not writable.
        """
        method = {"rows": rows, "cols": cols, "ensemble": ensemble, "seed": seed}
        path = self.control_path(rows, cols, ensemble, seed)
        rows = conform("controls", table).sort_by("k")
        self._files.write(path, described("controls", rows), file_metadata(method))

    def file_rows(self, table: str, name: str, columns: Sequence[str] | None = None) -> list[dict[str, object]]:
        """The rows of one file of a table (`matrices` of a scan, say), whole or some columns; none if there is no such file.

        Raises:
            StoreError: the store cannot be read.
        """
        rows = self._files.read(f"{table}/{name}.parquet") if table in SCHEMAS and is_safe_id(name) else None
        return [] if rows is None else complete(table, rows).select(columns or SCHEMAS[table].names).to_pylist()

    def vector_rows(self, scan_id: str, columns: Sequence[str]) -> pa.Table:
        """These columns of the rows of `vectors` of one committed scan, in the file's order.

        Raises:
            ValueError: not the id of a committed scan.
            StoreError: the store cannot be read.
        """
        if not is_safe_id(scan_id) or not self._files.is_file(f"vectors/{scan_id}.parquet"):
            raise ValueError(f"scan {scan_id!r} has no vectors in store {self.url!r}")
        return self._files.read_columns(f"vectors/{scan_id}.parquet", columns)

    def comparison(self, pair_id: str, *, method: Mapping[str, object]) -> ComparisonWriter:
        """Begin or resume the comparison of a pair of checkpoints.

        Raises:
            ValueError: the id is not a safe file name.
        """
        return ComparisonWriter(self._files, pair_id, method=method)

    def has_rows(self, table: str, name: str) -> bool:
        """Whether an experiment's file of that table is there.

        Raises:
            StoreError: the store cannot be read.
        """
        return self._files.is_file(f"{table}/{name}.parquet")

    def write_rows(self, table: str, name: str, rows: pa.Table, *, method: Mapping[str, object]) -> None:
        """Write one file of an experiment's table, whole and at once: a finished point or run, which is then never computed again.

        Args:
            table: one of those that runs of experiments write.
            name: the file's name: a hash of what was computed and how.
            rows: the rows.
            method: every parameter that went into the name, written into the file.

        Raises:
            ValueError: the table is another one, the name is not a safe file name, or the columns do not fit the schema.
            StoreError: the store is full or not writable.
        """
        if table not in experiment_tables() or not is_safe_id(name):
            raise ValueError(f"no experiment can write {table!r}/{name!r}")
        content = described(table, conform(table, rows))
        self._files.write(f"{table}/{name}.parquet", content, file_metadata(method), rows=ROW_GROUP)

    def method_of(self, table: str, name: str) -> dict[str, Any]:
        """The `method` that an experiment's file was written with; empty if there is no such file.

        Raises:
            StoreError: the store cannot be read.
        """
        rows = (
            self._files.read(f"{table}/{name}.parquet") if table in experiment_tables() and is_safe_id(name) else None
        )
        return {} if rows is None else method_in(rows.schema.metadata)

    def stage(self, run_id: str, name: str, content: bytes) -> None:
        """Keep what an unfinished experiment has so far under a name, until `unstage`.

        Raises:
            StoreError: the store is full or not writable.
        """
        self._files.write_bytes(f"{_STAGED}/{run_id}/{name}", content)

    def staged(self, run_id: str, name: str) -> bytes | None:
        """What was kept, None if nothing was.

        Raises:
            StoreError: the store cannot be read.
        """
        return self._files.read_bytes(f"{_STAGED}/{run_id}/{name}")

    def unstage(self, run_id: str, name: str | None = None) -> None:
        """Remove what was kept under a name (None: all that the run has kept), if it is there.

        Raises:
            StoreError: the store is not writable.
        """
        if name is None:
            self._files.remove_folder(f"{_STAGED}/{run_id}")
        else:
            self._files.remove(f"{_STAGED}/{run_id}/{name}")

    @property
    def local(self) -> bool:
        """Whether the store is a folder of this machine."""
        return self._files.local

    def beat(self, state: Heartbeat) -> None:
        """Write the state of running work, which other processes read with `running`.

        Raises:
            StoreError: the store is full or cannot be written.
        """
        heartbeat.write(self._files, state)

    def end_beat(self, run_id: str) -> None:
        """Remove the state of work that ends.

        Raises:
            StoreError: the store cannot be written.
        """
        heartbeat.remove(self._files, run_id)

    def running(self) -> list[Heartbeat]:
        """Return the work that is running, in any process and on any machine, the oldest first.

        Raises:
            StoreError: the store cannot be read.
        """
        return heartbeat.read_all(self._files)

    def queries(self) -> list[Query]:
        """Every named query, in alphabetical order."""
        return list(load_queries().values())

    def query(self, name: str, /, **params: object) -> pa.Table:
        """The answer to a named query.

        Args:
            name: one of `queries()`.
            params: its parameters; text is converted to the type that the parameter has.

        Raises:
            QueryError: no such query or parameter, a value that does not fit, or files that cannot be read.
            StoreError: the store cannot be read.
        """
        query = find_query(name)
        values = query.bind(params)
        return read(self._database(), query.sql, values)

    def sql(self, text: str, params: Params = None) -> pa.Table:
        """The answer to one SELECT statement.

        Every table has a view of its name (`scanner.store.tables.views()` lists them). `matrices`, `vectors`, `pairs`,
        `pair_vectors` and `pair_subspaces` hold the newest result of every matrix; `all_matrices`, `all_vectors` and so on
        those of every scan and comparison.

        Args:
            text: the statement; `$name` or `?` stand for parameters.
            params: their values.

        Raises:
            QueryError: not one SELECT statement, or one that DuckDB cannot run.
            StoreError: the store cannot be read.
        """
        connection = self._database()
        refuse_all_but_select(connection, text)
        return read(connection, text, params)

    def close(self) -> None:
        """Give back the memory and threads that questions have used; the next question opens the store anew."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _database(self) -> duckdb.DuckDBPyConnection:
        """A connection that knows what is committed now; the one of the last question if nothing has changed."""
        versions = {table: self._files.versions(table) for table in listed_tables()}
        if self._connection is None or self._version != versions:
            self.close()
            names = {table: [name for name, _ in found] for table, found in versions.items()}
            self._connection = connect(self._files, names)
            self._version = versions
        return self._connection
