"""A store: opening it by URL, listing and writing results, and queries."""

import importlib
import re
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from scanner import display
from scanner.errors import ConfigError, QueryError, ScannerError, StoreError, StoreWarning
from scanner.extensions import load_extensions
from scanner.store import heartbeat
from scanner.store.checksums import FileRecord, checked, is_safe_id, printable, records_as_json, with_checksum
from scanner.store.choosing import match_model
from scanner.store.damage import damage
from scanner.store.database import Database, Params, listing, parts, read, refuse_all_but_select
from scanner.store.files import StoreFiles
from scanner.store.groups import FOLDER, GROUPED, has_row, place, read_result, results, row_of
from scanner.store.heartbeat import Heartbeat
from scanner.store.queries import Query, find_query, load_queries
from scanner.store.row_groups import ROW_GROUP
from scanner.store.staging import ComparisonWriter, ScanWriter, Unfinished, key_hash, unfinished_scan
from scanner.store.tables import (
    SCHEMAS,
    TABLES,
    complete,
    conform,
    described,
    experiment_tables,
    file_metadata,
    fleet_tables,
    method_in,
    no_rows,
)
from scanner.store.verification import Verified, commit_row, problem_of, tables_around, verify

_FOLDERS = ("scans", FOLDER, "controls", "staging")
_STAGED = "staging-experiments"
#: What DuckDB raises if a file cannot be read; errors of the statement itself are others.
_OF_FILES = (duckdb.IOException, duckdb.InvalidInputException, duckdb.InternalException, duckdb.SerializationException)
#: Number of times that a store is opened again for one question, because other processes change it.
_REOPENED = 3
_SQL = Path(__file__).resolve().parent / "sql"
_KNOWN_MODELS = (_SQL / "known_models.sql").read_text("utf-8")
_IS_SCANNED = (_SQL / "is_scanned.sql").read_text("utf-8")
_ENSEMBLE = re.compile(r"[a-z][a-z0-9_]*")

Answer = TypeVar("Answer")


def open_store(url: str, *, create: bool = False) -> "Store":
    """Open the store at a local path or fsspec URL.

    Args:
        url: a local path, or a URL such as `s3://bucket/results`.
        create: create it if it does not exist, and check that it can be written.

    The store is a context manager: `with open_store("results") as store: ...` releases the memory of its queries at the end.

    Examples:
        >>> import numpy as np
        >>> import scanner
        >>> weights = {"layers.0.mlp.up_proj.weight": np.random.default_rng(0).normal(size=(300, 100))}
        >>> scan_id = scanner.analyze_model(weights, name="random").save("results")
        >>> with scanner.open_store("results") as store:
        ...     store.query("scans").column("model").to_pylist()
        ['random']

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
    """Results under one URL. A store cannot be shared between threads; open one in each.

    In a notebook it is shown as a table of its models, and answers of `query` and `sql` as tables.
    """

    def __init__(self, files: StoreFiles) -> None:
        self.url: str = files.url
        """Absolute path or URL."""
        self._files = files
        self._written: dict[str, FileRecord] = {}
        self._open: Database | None = None
        self._chosen: Mapping[str, Collection[str]] = {}
        display.show_answers()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def _repr_html_(self) -> str:
        caption = f"store {display.bold(self.url)}"
        try:
            found = self.query("scans")
            unfinished = len(self.unfinished())
        except ScannerError as error:
            return display.html_table([], [], caption=caption, notes=[str(error)])
        names = ["model", "revision", "format", "parameters", "matrices", "failed", "skipped", "finished_at"]
        rows = found.slice(0, display.MOST_ROWS).select(names).to_pylist()
        notes = [display.counted(found.num_rows, "scan")]
        notes[0] += f", {unfinished} unfinished" if unfinished else ""
        notes[0] += f", the newest {len(rows)} are shown" if len(rows) < found.num_rows else ""
        notes.append('next: store.query("outliers"), store.figure("depth", model=...), store.sql("select ...")')
        return display.html_table(names, [list(row.values()) for row in rows], caption=caption, notes=notes)

    def scan_row(self, scan_id: str) -> dict[str, object] | None:
        """Return the row of table `scans`, or None if the scan is not committed.

        Raises:
            StoreError: the store cannot be read.
        """
        if not is_safe_id(scan_id) or not has_row(self._files, "scans", scan_id):
            return None
        try:
            return commit_row(self._files, "scans", scan_id)
        except StoreError as error:
            raise StoreError(
                f"{self._files.full(f'scans/{scan_id}.parquet')!r} is damaged ({error}): scan again with `force`"
            ) from error

    def verify(self) -> list[Verified]:
        """Check every committed file: it is there, has its rows, and its checksum.

        Raises:
            StoreError: the store cannot be read.
        """
        return list(verify(self._files, deep=True))

    def problem(self, table: str, name: str) -> str | None:
        """Return what is wrong with the files of a committed result, in one line that names the file; None if they are whole.

        On an object store sizes and footers are compared, because checksums would be a download.

        Args:
            table: `scans`, `comparisons` or `experiments`.
            name: id of the scan, comparison or run.

        Raises:
            StoreError: the store cannot be read.
        """
        return problem_of(self._files, table, name, deep=self.local)

    def committed(self) -> list[str]:
        """Return the sorted ids of the committed scans.

        Raises:
            StoreError: the store cannot be read.
        """
        return results(self._files, "scans")

    def unfinished(self) -> list[Unfinished]:
        """Return scans that have staged parts and are not committed, sorted by id.

        Raises:
            StoreError: the store cannot be read.
        """
        committed = {*self.committed()}
        return [unfinished_scan(self._files, scan_id) for scan_id in self.begun() if scan_id not in committed]

    def begun(self) -> list[str]:
        """Return the sorted ids, also provisional ones, under which parts of scans are staged.

        Raises:
            StoreError: the store cannot be read.
        """
        return self._files.folders(ScanWriter.folder)

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
        """Return whether the control is in the store, and whole.

        Raises:
            StoreError: the store cannot be read.
        """
        return damage(self._files, self.control_path(rows, cols, ensemble, seed), None, deep=self.local) is None

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

    def matrix_control_path(self, scan_id: str, key: str, ensemble: str, seed: int) -> str:
        """Return the path of a random control of a matrix, relative to the store.

        Raises:
            ValueError: the id of the scan or the name of the ensemble cannot be a part of a file name.
        """
        if not is_safe_id(scan_id) or _ENSEMBLE.fullmatch(ensemble) is None:
            raise ValueError(f"scan {scan_id!r}, ensemble {ensemble!r}: other characters than letters, digits and '_'")
        return f"matrix_controls/{scan_id}-{key_hash(key)}-{ensemble}-{int(seed)}.parquet"

    def has_matrix_control(self, scan_id: str, key: str, ensemble: str, seed: int) -> bool:
        """Return whether the control of the matrix with this key is in the store, and whole.

        Raises:
            StoreError: the store cannot be read.
        """
        return (
            damage(self._files, self.matrix_control_path(scan_id, key, ensemble, seed), None, deep=self.local) is None
        )

    def write_matrix_control(self, table: pa.Table, scan_id: str, key: str, ensemble: str, seed: int) -> None:
        """Write one control of a matrix, with one row per singular triplet.

        Raises:
            ValueError: the columns do not fit the schema.
            StoreError: the store is full or cannot be written.
        """
        path = self.matrix_control_path(scan_id, key, ensemble, seed)
        rows = conform("matrix_controls", table).sort_by("k")
        method = {"scan_id": scan_id, "ensemble": ensemble, "seed": seed}
        self._files.write(path, described("matrix_controls", rows), file_metadata(method))

    def file_rows(self, table: str, name: str, columns: Sequence[str] | None = None) -> list[dict[str, object]]:
        """Return the rows of one file of a table, with all or some columns; none if the file does not exist.

        Columns that were added after the file was written are None.

        Raises:
            StoreError: the store cannot be read.
        """
        if table not in SCHEMAS or not is_safe_id(name):
            return []
        if table in GROUPED:
            row = row_of(self._files, table, name)
            found = [] if row is None else [row]
        elif TABLES[table].listed_by in GROUPED:
            found = [*read_result(self._files, table, name)]
        else:
            content = self._files.read(f"{table}/{name}.parquet")
            found = [] if content is None else [content]
        wanted = columns or SCHEMAS[table].names
        return [row for rows in found for row in complete(table, rows).select(wanted).to_pylist()]

    def vector_rows(self, scan_id: str, columns: Sequence[str]) -> pa.Table:
        """Return columns of the rows of `vectors` of one committed scan, in the order of the file.

        Raises:
            ValueError: the scan is not committed.
            StoreError: the store cannot be read.
        """
        at = place(self._files, "vectors", scan_id) if is_safe_id(scan_id) else None
        if at is None:
            raise ValueError(f"scan {scan_id!r} has no vectors in store {self.url!r}")
        if not at.grouped:
            return self._files.read_columns(at.path, columns)
        empty = no_rows("vectors").select([*columns])
        found = (rows.cast(empty.schema) for rows in read_result(self._files, "vectors", scan_id, columns))
        return pa.concat_tables([empty, *found])

    def comparison(self, pair_id: str, *, method: Mapping[str, object]) -> ComparisonWriter:
        """Begin or resume the comparison of a pair of checkpoints.

        Raises:
            ValueError: the id cannot be a file name.
        """
        return ComparisonWriter(self._files, pair_id, method=method)

    def has_rows(self, table: str, name: str) -> bool:
        """Return whether a file of a table of experiments exists, and is whole.

        Raises:
            StoreError: the store cannot be read.
        """
        path = f"{table}/{name}.parquet"
        return table in SCHEMAS and is_safe_id(name) and damage(self._files, path, None, deep=self.local) is None

    def write_rows(self, table: str, name: str, rows: pa.Table, *, method: Mapping[str, object]) -> None:
        """Write one file of a table of experiments (a finished point or run, which is not computed again) or of nightly scans.

        Args:
            table: one of those that runs of experiments or nightly scans write.
            name: name of the file: a hash of what was computed and how.
            rows: the rows.
            method: the parameters that the name was made of; they are written into the file.

        Raises:
            ValueError: neither experiments nor nightly scans write this table, the name cannot be a file name, or the columns do
                not fit the schema.
            StoreError: the store is full or cannot be written.
        """
        if table not in (*experiment_tables(), *fleet_tables()) or not is_safe_id(name):
            raise ValueError(f"no experiment can write {table!r}/{name!r}")
        content = described(table, conform(table, rows))
        path = f"{table}/{name}.parquet"
        self._written[path] = self._files.write(path, content, file_metadata(method), rows=ROW_GROUP)

    def written(self, run_id: str) -> str:
        """Return the records of the files of a run that this object wrote, for column `files` of `experiments`."""
        own = re.compile(rf"[a-z_]+/{re.escape(run_id)}([.-].*)?\.parquet")
        return records_as_json({path: record for path, record in self._written.items() if own.fullmatch(path)})

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
        self._files.write_bytes(f"{_STAGED}/{run_id}/{name}", with_checksum(content))

    def staged(self, run_id: str, name: str) -> bytes | None:
        """Return what `stage` kept under a name, or None if there is nothing, or it is damaged.

        Raises:
            StoreError: the store cannot be read.
        """
        return checked(self._files.read_bytes(f"{_STAGED}/{run_id}/{name}"))

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
        heartbeat.write(self._files.with_patience(heartbeat.PATIENCE), state)

    def end_beat(self, run_id: str) -> None:
        """Remove the state of work that ends.

        Raises:
            StoreError: the store cannot be written.
        """
        heartbeat.remove(self._files.with_patience(heartbeat.PATIENCE), run_id)

    def remove_expired_beats(self) -> None:
        """Remove the states of work that ended long ago without removing them, because it was killed.

        Raises:
            StoreError: the store cannot be read or written.
        """
        heartbeat.remove_expired(self._files.with_patience(heartbeat.PATIENCE))

    def running(self) -> list[Heartbeat]:
        """Return the work that is running, in any process and on any machine, the oldest first.

        Raises:
            StoreError: the store cannot be read.
        """
        return heartbeat.read_all(self._files)

    @property
    def files(self) -> StoreFiles:
        """The files of the store, for what is no table: leases."""
        return self._files

    def queries(self) -> list[Query]:
        """Return all named queries in alphabetical order."""
        return list(load_queries().values())

    def query(self, name: str, /, **params: object) -> pa.Table:
        """Run a named query.

        Args:
            name: one of `queries()`.
            params: its parameters; text is converted to the type of the parameter, and a part of the name of a model to the name
                (see `find_model`).

        Raises:
            QueryError: unknown query or parameter, invalid value, no such model or several, or files that cannot be read.
            StoreError: the store cannot be read.

        Returns:
            An Arrow table. The metadata of its fields say what the columns are.

        Examples:
            >>> import numpy as np
            >>> import scanner
            >>> weights = {"layers.0.mlp.up_proj.weight": np.random.default_rng(0).normal(size=(300, 100))}
            >>> scan_id = scanner.analyze_model(weights, name="random").save("results")
            >>> store = scanner.open_store("results")
            >>> table = store.query("layer_trend", role="mlp_up")
            >>> table.num_rows
            1
            >>> table.schema.field("v_p").metadata[b"description"].decode()
            'right singular vectors: mean p-value'
        """
        query = find_query(name)
        values = query.bind(params)
        for param in query.params:
            named = values[param.name]
            if param.type == "MODEL" and isinstance(named, str):
                values[param.name] = self.find_model(named)
        columns = {column.name: column.help for column in query.columns}
        return display.marked(self._read(query.sql, values), query.name, query.title, columns)

    def models(self) -> list[str]:
        """Return the sorted names of all models with results: of scans, comparisons and experiments, differences included.

        Raises:
            StoreError: the store cannot be read.
        """
        return sorted({*self._read(_KNOWN_MODELS, None)["model"].to_pylist()} - {None})

    def find_model(self, text: str) -> str:
        """Return the name of the model with results that is meant: the whole name, or a part that no other name has.

        Raises:
            QueryError: there is no such model, several names have this part, or its scan is not finished; the message lists
                candidates.
            StoreError: the store cannot be read.
        """
        if self._read(_IS_SCANNED, {"model": text})["scanned"][0].as_py():
            return text
        known = self.models()
        try:
            return match_model(text, known)
        except QueryError:
            begun = [scan for scan in self.unfinished() if scan.model is not None and text in scan.model]
            if not begun or any(text.casefold() in name.casefold() for name in known):
                raise
            raise QueryError(
                f"the scan of {printable(str(begun[0].model))!r} is not finished ({begun[0].parts} matrices so far): "
                "the same scan resumes it"
            ) from None

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

        Examples:
            >>> import numpy as np
            >>> import scanner
            >>> weights = {"layers.0.mlp.up_proj.weight": np.random.default_rng(0).normal(size=(300, 100))}
            >>> scan_id = scanner.analyze_model(weights, name="random").save("results")
            >>> store = scanner.open_store("results")
            >>> store.sql("select role, count(*) as n from vectors where region = $r group by all", {"r": "bulk"}).to_pylist()
            [{'role': 'mlp_up', 'n': 100}]
        """
        if timeout is not None and not 0 < timeout <= threading.TIMEOUT_MAX:
            raise ConfigError("timeout", f"must be a positive number of seconds, got {timeout:g}")
        if self._open is None:
            self._open = Database(self._files, self._chosen)
        refuse_all_but_select(self._open.connection, text)
        return display.marked(self._read(text, params, timeout=timeout), "", "", {})

    def figure(self, name: str, /, *, interactive: bool = True, **parameters: Any) -> Any:
        """Return a figure as an altair chart, which a notebook shows.

        Args:
            name: of a figure, such as `depth` or `spectrum`; `rmtscan plot --list` lists them.
            interactive: for a screen, with tooltips and zoom; False: for print.
            parameters: of the figure, such as `model="org/model", layer=3` (a name may be shortened to a part that no other
                name has), and its appearance: `width="85mm"`, `height`,
                `font_size`, `theme="paper"` (see `scanner.figures.Figure.draw`).

        Raises:
            ScannerError: no such figure, parameter, model, layer or role; the message lists what there is.

        Examples:
            >>> import numpy as np
            >>> import scanner
            >>> weights = {"layers.0.mlp.up_proj.weight": np.random.default_rng(0).normal(size=(300, 100))}
            >>> scan_id = scanner.analyze_model(weights, name="random").save("results")
            >>> with scanner.open_store("results") as store:
            ...     chart = store.figure("spectrum", role="mlp_up", width="85mm")
            >>> chart.save("spectrum.svg")
        """
        # Found by name when it is called: the figures read stores, so an import of them here would be a circle.
        figures = importlib.import_module("scanner.figures")
        found = figures.find_figure(name)
        for key in ("model", "base", "tuned"):
            if key in found.parameters and isinstance(parameters.get(key), str):
                parameters[key] = self.find_model(parameters[key])
        return found.draw(self, interactive=interactive, **parameters)

    def narrowed(self, scans: Collection[str], comparisons: Collection[str] = ()) -> "Store":
        """Return this store for queries that see some results only: they do not open the files of others.

        Args:
            scans: ids of the scans that the tables of scans have.
            comparisons: ids of the comparisons that the tables of comparisons have.
        """
        found = Store(self._files)
        found._chosen = {"scans": frozenset(scans), "comparisons": frozenset(comparisons)}
        return found

    def close(self) -> None:
        """Release the memory and threads of queries; the next query opens the database again."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _read(self, text: str, params: Params, *, timeout: float | None = None) -> pa.Table:
        if self._open is None:
            self._open = Database(self._files, self._chosen)
        wanted = self._open.needed(text)
        try:
            return self._answer(wanted, text, params, timeout)
        except QueryError as error:
            # A statement may name a relation in a way that its tree does not tell.
            if not isinstance(error.__cause__, duckdb.CatalogException) or wanted == parts():
                raise
        return self._answer(parts(), text, params, timeout)

    def _answer(self, wanted: Iterable[str], text: str, params: Params, timeout: float | None) -> pa.Table:
        """Answer from the committed results of now. What turns out to be damaged is left out, with a warning."""
        return self._with_what_is_whole(
            wanted, lambda database: read(database.connection, text, params, timeout=timeout)
        )

    def _with_what_is_whole(self, wanted: Iterable[str], answer: Callable[[Database], Answer]) -> Answer:
        for _ in range(_REOPENED):
            try:
                return answer(self._database(wanted))
            except StoreError as error:
                if isinstance(error, QueryError) and not isinstance(error.__cause__, _OF_FILES):
                    raise
                # Another process may have compacted the store or removed results since it was listed: then it is opened again.
                if not self._is_outdated(wanted):
                    break
        database = self._without_damaged(wanted)
        return answer(self._database(wanted) if database is None else database)

    def _database(self, wanted: Iterable[str] | None = None) -> Database:
        """Return a database with these parts (None: all) of the results of now; the previous one if nothing has changed."""
        wanted = parts() if wanted is None else wanted
        fresh = {table: listing(self._files, table) for table in Database.tables_for(wanted)}
        known = self._open
        if known is None or any(
            known.listings[table].version != found.version for table, found in fresh.items() if table in known.listings
        ):
            self.close()
            self._open = known = Database(self._files, self._chosen)
        known.listings.update({table: found for table, found in fresh.items() if table not in known.listings})
        known.prepare(wanted)
        return known

    def _is_outdated(self, wanted: Iterable[str]) -> bool:
        """Whether the store was changed since it was listed."""
        known, self._open = self._open, None
        if known is None:
            return False
        known.close()
        tables = (table for table in Database.tables_for(wanted) if table in known.listings)
        return any(listing(self._files, table).version != known.listings[table].version for table in tables)

    def _without_damaged(self, wanted: Iterable[str]) -> Database | None:
        """Connect without results that have a missing or damaged file, and warn of each; None if there are none."""
        damaged = [found for found in verify(self._files, deep=self.local) if found.state == "damaged"]
        lost = {(table, result) for found in damaged for table in tables_around(found.file) for result in found.results}
        if not lost:
            return None
        for found in damaged:
            warnings.warn(
                f"{self._files.full(found.file)!r} {found.problem}; it is left out: {found.remedy}",
                StoreWarning,
                stacklevel=4,
            )
        self.close()
        self._open = database = Database(self._files, self._chosen)
        database.listings = {table: listing(self._files, table) for table in Database.tables_for(wanted)}
        database.left_out = frozenset(lost)
        database.prepare(wanted)
        return database
