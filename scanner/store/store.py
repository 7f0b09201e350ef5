"""A store: opening it by URL, listing and writing results, and queries."""

import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from scanner.errors import ConfigError, StoreError
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
    """Open the store at a local path or fsspec URL.

    Args:
        url: a local path, or a URL such as `s3://bucket/results`.
        create: create it if it does not exist, and check that it can be written.

    Raises:
        StoreError: it does not exist (without `create`), is a file, cannot be reached, or (with `create`) cannot be written.
    """
    load_extensions()
    files = StoreFiles(url)
    if files.is_file(""):
        raise StoreError(f"store {files.url!r} is a file: name a folder with `store`")
    if create:
        files.prepare("scans")
    elif not any(files.is_folder(folder) for folder in _FOLDERS):
        raise StoreError(
            f"there is no store at {files.url!r}: a scan into it (rmtscan scan REF --store {url}) creates one"
        )
    return Store(files)


class Store:
    """Results under one URL. A store cannot be shared between threads; open one in each."""

    def __init__(self, files: StoreFiles) -> None:
        self.url: str = files.url
        """Absolute path or URL."""
        self._files = files
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._version: object = None

    def scan_row(self, scan_id: str) -> dict[str, object] | None:
        """Return the row of table `scans`, or None if the scan is not committed.

        Raises:
            StoreError: the store cannot be read.
        """
        table = self._files.read(f"scans/{scan_id}.parquet") if is_safe_id(scan_id) else None
        return None if table is None else table.to_pylist()[0]

    def committed(self) -> list[str]:
        """Return the sorted ids of the committed scans.

        Raises:
            StoreError: the store cannot be read.
        """
        return self._files.names("scans")

    def unfinished(self) -> list[Unfinished]:
        """Return scans that have staged parts and are not committed, sorted by id.

        Raises:
            StoreError: the store cannot be read.
        """
        begun = sorted({*self._files.folders("staging")} - {*self.committed()})
        return [unfinished_scan(self._files, scan_id) for scan_id in begun]

    def writer(self, scan_id: str, *, method: Mapping[str, object], model: str) -> ScanWriter:
        """Begin or resume a scan.

        Args:
            scan_id: identity of content and method: letters, digits, `.`, `_` and `-`.
            method: the parameters that the id was made of; they are written into every file.
            model: name of the model.

        Raises:
            ValueError: the id cannot be a file name.
            StoreError: the store cannot be read.
        """
        return ScanWriter(self._files, scan_id, method=method, model=model)

    def control_path(self, rows: int, cols: int, ensemble: str, seed: int) -> str:
        """Return the path of a random control, relative to the store.

        Raises:
            ValueError: the name of the ensemble has other characters than lower-case letters, digits and `_`.
        """
        if _ENSEMBLE.fullmatch(ensemble) is None:
            raise ValueError(f"ensemble {ensemble!r}: only lower-case letters, digits and '_' are allowed")
        return f"controls/{int(rows)}x{int(cols)}-{ensemble}-{int(seed)}.parquet"

    def has_control(self, rows: int, cols: int, ensemble: str, seed: int) -> bool:
        """Return whether the control is in the store.

        Raises:
            StoreError: the store cannot be read.
        """
        return self._files.is_file(self.control_path(rows, cols, ensemble, seed))

    def write_control(self, table: pa.Table, rows: int, cols: int, ensemble: str, seed: int) -> None:
        """Write one control, with one row per singular triplet.

        Raises:
            ValueError: the columns do not fit the schema.
            StoreError: the store is full or cannot be written.
        """
        method = {"rows": rows, "cols": cols, "ensemble": ensemble, "seed": seed}
        path = self.control_path(rows, cols, ensemble, seed)
        rows = conform("controls", table).sort_by("k")
        self._files.write(path, described("controls", rows), file_metadata(method))

    def file_rows(self, table: str, name: str, columns: Sequence[str] | None = None) -> list[dict[str, object]]:
        """Return the rows of one file of a table, with all or some columns; none if the file does not exist.

        Columns that were added after the file was written are None.

        Raises:
            StoreError: the store cannot be read.
        """
        rows = self._files.read(f"{table}/{name}.parquet") if table in SCHEMAS and is_safe_id(name) else None
        return [] if rows is None else complete(table, rows).select(columns or SCHEMAS[table].names).to_pylist()

    def vector_rows(self, scan_id: str, columns: Sequence[str]) -> pa.Table:
        """Return columns of the rows of `vectors` of one committed scan, in the order of the file.

        Raises:
            ValueError: the scan is not committed.
            StoreError: the store cannot be read.
        """
        if not is_safe_id(scan_id) or not self._files.is_file(f"vectors/{scan_id}.parquet"):
            raise ValueError(f"scan {scan_id!r} has no vectors in store {self.url!r}")
        return self._files.read_columns(f"vectors/{scan_id}.parquet", columns)

    def comparison(self, pair_id: str, *, method: Mapping[str, object]) -> ComparisonWriter:
        """Begin or resume the comparison of a pair of checkpoints.

        Raises:
            ValueError: the id cannot be a file name.
        """
        return ComparisonWriter(self._files, pair_id, method=method)

    def has_rows(self, table: str, name: str) -> bool:
        """Return whether a file of a table of experiments exists.

        Raises:
            StoreError: the store cannot be read.
        """
        return self._files.is_file(f"{table}/{name}.parquet")

    def write_rows(self, table: str, name: str, rows: pa.Table, *, method: Mapping[str, object]) -> None:
        """Write one file of a table of experiments: a finished point or run, which is not computed again.

        Args:
            table: one of those that runs of experiments write.
            name: name of the file: a hash of what was computed and how.
            rows: the rows.
            method: the parameters that the name was made of; they are written into the file.

        Raises:
            ValueError: experiments do not write this table, the name cannot be a file name, or the columns do not fit the schema.
            StoreError: the store is full or cannot be written.
        """
        if table not in experiment_tables() or not is_safe_id(name):
            raise ValueError(f"no experiment can write {table!r}/{name!r}")
        content = described(table, conform(table, rows))
        self._files.write(f"{table}/{name}.parquet", content, file_metadata(method), rows=ROW_GROUP)

    def method_of(self, table: str, name: str) -> dict[str, Any]:
        """Return the `method` that a file of an experiment was written with; empty if the file does not exist.

        Raises:
            StoreError: the store cannot be read.
        """
        rows = (
            self._files.read(f"{table}/{name}.parquet") if table in experiment_tables() and is_safe_id(name) else None
        )
        return {} if rows is None else method_in(rows.schema.metadata)

    def stage(self, run_id: str, name: str, content: bytes) -> None:
        """Keep intermediate results of an unfinished experiment under a name, until `unstage`.

        Raises:
            StoreError: the store is full or cannot be written.
        """
        self._files.write_bytes(f"{_STAGED}/{run_id}/{name}", content)

    def staged(self, run_id: str, name: str) -> bytes | None:
        """Return what `stage` kept under a name, or None.

        Raises:
            StoreError: the store cannot be read.
        """
        return self._files.read_bytes(f"{_STAGED}/{run_id}/{name}")

    def unstage(self, run_id: str, name: str | None = None) -> None:
        """Remove what `stage` kept under a name (None: everything of the run), if there is anything.

        Raises:
            StoreError: the store cannot be written.
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

    def remove_expired_beats(self) -> None:
        """Remove the states of work that ended long ago without removing them, because it was killed.

        Raises:
            StoreError: the store cannot be read or written.
        """
        heartbeat.remove_expired(self._files)

    def running(self) -> list[Heartbeat]:
        """Return the work that is running, in any process and on any machine, the oldest first.

        Raises:
            StoreError: the store cannot be read.
        """
        return heartbeat.read_all(self._files)

    def queries(self) -> list[Query]:
        """Return all named queries in alphabetical order."""
        return list(load_queries().values())

    def query(self, name: str, /, **params: object) -> pa.Table:
        """Run a named query.

        Args:
            name: one of `queries()`.
            params: its parameters; text is converted to the type of the parameter.

        Raises:
            QueryError: unknown query or parameter, invalid value, or files that cannot be read.
            StoreError: the store cannot be read.
        """
        query = find_query(name)
        values = query.bind(params)
        return read(self._database(), query.sql, values)

    def sql(self, text: str, params: Params = None, *, timeout: float | None = None) -> pa.Table:
        """Run one SELECT statement.

        Every table has a view of its name (`scanner.store.tables.views()` lists them). `matrices`, `vectors`, `pairs`,
        `pair_vectors` and `pair_subspaces` hold the newest result of every matrix; `all_matrices`, `all_vectors` and so on
        those of every scan and comparison.

        Args:
            text: the statement; `$name` or `?` stand for parameters.
            params: their values.
            timeout: seconds that the statement may take; None: any time.

        Raises:
            QueryError: it is not one SELECT statement, DuckDB cannot run it, or it takes longer than `timeout`.
            ConfigError: `timeout` is not a positive number.
            StoreError: the store cannot be read.
        """
        if timeout is not None and not 0 < timeout <= threading.TIMEOUT_MAX:
            raise ConfigError("timeout", f"must be a positive number of seconds, got {timeout:g}")
        connection = self._database()
        refuse_all_but_select(connection, text)
        return read(connection, text, params, timeout=timeout)

    def close(self) -> None:
        """Release the memory and threads of queries; the next query opens the database again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _database(self) -> duckdb.DuckDBPyConnection:
        """Return a connection with the committed results of now; the previous one if nothing has changed."""
        versions = {table: self._files.versions(table) for table in listed_tables()}
        if self._connection is None or self._version != versions:
            self.close()
            names = {table: [name for name, _ in found] for table, found in versions.items()}
            self._connection = connect(self._files, names)
            self._version = versions
        return self._connection
