"""Scans and comparisons on their way into a store: parts are staged one by one and committed together.

A part is a file STORE/<staging folder>/<id>/<generation>/finished/<hash of key>.arrow (see `parts`); where a matrix failed, the
reason is in failures/<hash of key>.parquet beside it. The generation names the committed result that is going to be replaced
(`first` if there is none). So whatever a crash leaves behind belongs to a generation that the next commit makes obsolete, and no
bookkeeping is needed. The committing row is written last: readers see all of a result or nothing.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from scanner.errors import StoreError
from scanner.store.changing import changing
from scanner.store.checksums import FileRecord, checked, is_safe_id, records_as_json, with_checksum
from scanner.store.files import StoreFiles
from scanner.store.groups import has_row, read_result, row_digest
from scanner.store.lease import Lease
from scanner.store.parts import (
    SUFFIX,
    DamagedPartError,
    SmallTables,
    finished_part,
    pack_part,
    read_largest_table,
    read_small_tables,
    rows_of,
    sorted_by_rank,
)
from scanner.store.row_groups import ROW_GROUP, write_row_groups
from scanner.store.tables import MATRIX_KEY, SCHEMAS, TABLES, complete, described, file_metadata, no_rows, to_json
from scanner.version import __version__

_FIRST = "first"
_READERS = 16

AnyRead = TypeVar("AnyRead")
Tables = Mapping[str, pa.Table]


class _PartsGoneError(Exception):
    """Parts that were staged are no longer there."""

    def __init__(self, count: int = 1) -> None:
        super().__init__(count)
        self.count = count


def key_hash(key: str) -> str:
    """Return a safe file name of fixed length: a key holds the name of a tensor, which may hold anything."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Staging:
    """One scan or comparison. Two writers of the same result, in two processes, end with one complete result."""

    commits: ClassVar[str]
    """The table whose row commits the result."""
    id_column: ClassVar[str]
    largest: ClassVar[str]
    """The table with many rows per part; it is written a row group at a time."""
    small: ClassVar[tuple[str, ...]]
    """Tables with few rows per part; they are merged in memory. The first has one row per part."""
    folder: ClassVar[str]
    """The staging folder."""

    def __init__(self, files: StoreFiles, result_id: str, *, method: Mapping[str, object]) -> None:
        """Begin or resume a result.

        Raises:
            ValueError: the id is not a safe file name.
            StoreError: the store cannot be read.
        """
        if not is_safe_id(result_id):
            what = self.id_column.replace("_", " ")
            raise ValueError(f"{what} {result_id!r}: only letters, digits, '.', '_' and '-' are allowed, at most 128")
        self.result_id = result_id
        self._files = files
        self._method = dict(method)
        self._root = f"{self.folder}/{result_id}"
        self._generation = self._committed_generation()
        self._folder = f"{self._root}/{self._generation}"
        self._finished: set[str] = set()
        self._columns: dict[str, str] = {}  # of every row, if they were not known when the parts were staged

    @property
    def replaces(self) -> bool:
        """Whether a committed result was there when this writer was made; a commit replaces it."""
        return self._generation != _FIRST

    @property
    def committed(self) -> bool:
        """Whether the result is in the store."""
        return has_row(self._files, self.commits, self.result_id)

    def stage_part(self, key: str, part: bytes) -> None:
        """Keep a part that was packed for this result and key; it replaces an earlier part or failure of the key.

        Raises:
            StoreError: the store is full or cannot be written.
        """
        name = key_hash(key)
        self._files.write_bytes(self._path(name), with_checksum(part), lasting=False)
        self._files.remove(self._failure_path(name))
        self._finished.add(name)

    def unstage(self, keys: Iterable[str]) -> None:
        """Remove the parts and failures of some keys, so that they are computed again.

        Raises:
            StoreError: they cannot be removed.
        """
        for name in map(key_hash, keys):
            self._files.remove(self._path(name))
            self._files.remove(self._failure_path(name))
            self._finished.discard(name)

    def discard(self) -> None:
        """Remove all staged parts of this result.

        Raises:
            StoreError: they cannot be removed.
        """
        self._files.remove_folder(self._root)
        self._finished.clear()

    def clean_up(self) -> None:
        """Remove the parts that a commit made obsolete: those of every generation but the current one.

        The result can be read before. A crash in between leaves files that the next commit removes.

        Raises:
            StoreError: they cannot be removed.
        """
        if self._columns:  # no later result has parts in this folder
            self._files.remove_folder(self._root)
        # An earlier run may have known the id from the start, and staged parts under it.
        root, current = f"{self.folder}/{self.result_id}", self._committed_generation()
        for name in self._files.folders(root):
            if name != current:
                self._files.remove_folder(f"{root}/{name}")
        self._files.remove_empty_folder(root)

    def _commit(self, row_of: Callable[[Tables], Mapping[str, object]], keys: Sequence[str] | None = None) -> bool:
        """Merge parts into one sorted file per table and write the committing row.

        If another driver committed the same result since this writer was made, that result stands and these parts are dropped.

        Args:
            row_of: returns the committing row for the merged small tables.
            keys: the parts to merge; None: all.

        Returns:
            Whether it is the result of this writer that stands.
        """
        # Two drivers with one id may have parts in different folders, and would write the same files at the same time.
        with changing(self._files, self.result_id) as held:
            return self._commit_alone(held, row_of, keys)

    def _commit_alone(
        self, held: Lease, row_of: Callable[[Tables], Mapping[str, object]], keys: Sequence[str] | None
    ) -> bool:
        names = self._names()
        failures = sorted({*self._files.names(f"{self._folder}/failures")} - {*names})
        # Looked up after the parts: the other driver writes its row before it removes them.
        committed = self._committed_generation()
        nothing_new = committed != _FIRST and not names and not failures and not self._finished
        if committed != self._generation or nothing_new:
            return False
        wanted = names if keys is None else [key_hash(key) for key in keys]
        try:
            gone = len((self._finished | {*wanted}) - {*names})
            if gone:
                raise _PartsGoneError(gone)
            self._merge(held, wanted, failures, row_of)
        except _PartsGoneError as error:
            if self._committed_generation() == self._generation:
                raise StoreError(
                    f"{error.count} staged parts of {self.id_column} {self.result_id!r} were removed while it ran (by another "
                    "run with `force`, or by hand): run it again"
                ) from None
            return False
        return True

    def _merge(
        self,
        held: Lease,
        names: Sequence[str],
        failure_names: Sequence[str],
        row_of: Callable[[Tables], Mapping[str, object]],
    ) -> None:
        found = self._read_many(self._small_tables, names)
        parts = {name: part.tables for name, part in zip(names, found, strict=True) if part is not None}
        if len(parts) < len(names):
            raise _PartsGoneError(len(names) - len(parts))
        first, *others = self.small
        order = _stack(first, [part[first] for part in parts.values()]).append_column(
            "part", pa.array(list(parts), pa.string())
        )
        # Nulls come last.
        order = order.sort_by([(column, "ascending") for column in TABLES[first].order])
        sequence = order["part"].to_pylist()
        merged = {first: order.drop_columns("part")}
        merged |= {name: _stack(name, [parts[part][name] for part in sequence]) for name in others}
        merged |= self._merged_failures(failure_names)
        merged = {name: self._renamed(table) for name, table in merged.items()}

        largest = self._write_largest(held, (self._largest_table(name) for name in sequence))
        records = {f"{self.largest}/{self.result_id}.parquet": largest}
        for name, table in merged.items():
            path = f"{name}/{self.result_id}.parquet"
            held.check()
            records[path] = self._files.write(path, described(name, table), self._metadata(), rows=ROW_GROUP)
        row = self._complete_row(row_of(merged), merged, largest.rows)
        held.check()
        self._write_row({**row, "files": records_as_json(records)})

    def _complete_row(self, row: Mapping[str, object], merged: Tables, rows: int) -> Mapping[str, object]:
        """Add what follows from the merged tables; `rows` is the number of rows of the largest table."""
        return row

    def _merged_failures(self, names: Sequence[str]) -> Tables:
        return {}

    def _write_largest(self, held: Lease, parts: Iterable[pa.Table]) -> FileRecord:
        """Append the parts to one file, in the given order, a row group at a time; returns its record."""
        schema = TABLES[self.largest].described.with_metadata(self._metadata())
        tables = (described(self.largest, self._renamed(part)) for part in parts)
        with self._files.replacing(f"{self.largest}/{self.result_id}.parquet") as file:
            rows = write_row_groups(file, schema, tables)
            held.check()
            return file.record(rows)

    def _renamed(self, table: pa.Table) -> pa.Table:
        """Fill in the columns that were not known when the parts were staged."""
        for name in self._columns.keys() & {*table.column_names}:
            at, kind = table.column_names.index(name), table.schema.field(name)
            table = table.set_column(at, kind, pa.repeat(pa.scalar(self._columns[name], kind.type), table.num_rows))
        return table

    def _write_row(self, row: Mapping[str, object]) -> None:
        self._check_row(row)
        table = pa.Table.from_pylist([dict(row)], schema=TABLES[self.commits].described)
        self._files.write(f"{self.commits}/{self.result_id}.parquet", table, self._metadata())

    def _check_row(self, row: Mapping[str, object]) -> None:
        unknown = sorted({*row} - {*SCHEMAS[self.commits].names})
        if unknown:
            raise ValueError(f"table {self.commits!r} has no columns {unknown}")

    def _committed_generation(self) -> str:
        """Name the committed result by its content; `first` if nothing is committed yet."""
        digest = row_digest(self._files, self.commits, self.result_id)
        return _FIRST if digest is None else digest[:16]

    def _names(self) -> list[str]:
        """Names of the finished parts, sorted."""
        return self._files.names(f"{self._folder}/finished", SUFFIX)

    def _path(self, name: str) -> str:
        return f"{self._folder}/finished/{name}{SUFFIX}"

    def _failure_path(self, name: str) -> str:
        return f"{self._folder}/failures/{name}.parquet"

    def _small_tables(self, name: str) -> SmallTables | None:
        return read_small_tables(checked(self._files.read_bytes(self._path(name))), self.small)

    def _largest_table(self, name: str) -> pa.Table:
        path = self._path(name)
        stored = self._files.read_bytes(path)
        if stored is None:
            raise _PartsGoneError
        content = checked(stored)
        try:
            if content is None:
                raise DamagedPartError("its checksum is another")
            return read_largest_table(content, self.largest)
        except DamagedPartError as error:
            self._files.remove(path)
            raise StoreError(
                f"{self._files.full(path)!r} was damaged after it was written ({error}): run the command again, which computes it "
                "again"
            ) from error

    def _metadata(self) -> dict[str, str]:
        return file_metadata(self._method)

    def _read_many(self, read: Callable[[str], AnyRead], names: Iterable[str]) -> list[AnyRead]:
        """Read many small files: in threads on an object store, where latency dominates; on a disk threads only cost time."""
        if self._files.local:
            return [read(name) for name in names]
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(read, names))


class ScanWriter(Staging):
    """Writes one scan."""

    commits = "scans"
    id_column = "scan_id"
    largest = "vectors"
    small = ("matrices",)
    folder = "staging"

    def __init__(self, files: StoreFiles, scan_id: str, *, method: Mapping[str, object], model: str) -> None:
        """Begin or resume a scan; arguments and errors as in `Store.writer`."""
        super().__init__(files, scan_id, method=method)
        self._model = model

    @property
    def scan_id(self) -> str:
        """Id of the scan."""
        return self.result_id

    def become(self, scan_id: str, revision: str) -> None:
        """Let `commit` write what was staged under a provisional id as the scan of this id and revision.

        The parts stay where they are, so that a run that ends before the commit can be resumed under the provisional id.

        Raises:
            ValueError: the id is not a safe file name.
            StoreError: the store cannot be read.
        """
        if not is_safe_id(scan_id):
            raise ValueError(f"scan id {scan_id!r} is not a safe file name")
        self.result_id = scan_id
        self._columns = {"scan_id": scan_id, "revision": revision}
        self._generation = self._committed_generation()

    def staged(self) -> set[str]:
        """Return the keys of the finished matrices. A damaged part does not count: its matrix is scanned again."""
        keys = set()
        names = self._names()
        for name, found in zip(names, self._read_many(self._small_tables, names), strict=True):
            if found is not None:
                keys.add(found.key)
                self._finished.add(name)
        return keys

    def stage(self, key: str, matrices: pa.Table, vectors: pa.Table) -> None:
        """Keep the result of one matrix: its row of `matrices` and its rows of `vectors`.

        Staging the same key again replaces the result, and removes a failure of that key.

        Raises:
            ValueError: not one row of `matrices`, rows of another scan, or columns that do not fit the schemas.
            StoreError: the store is full or cannot be written.
        """
        self.stage_part(key, finished_part(self.scan_id, key, matrices, vectors))

    def stage_failure(self, key: str, failures: pa.Table) -> None:
        """Keep the reason why a matrix could not be analyzed. `staged` leaves it out, so a resumed scan tries it again.

        Raises:
            ValueError: rows of another scan, or columns that do not fit the schema.
            StoreError: the store is full or cannot be written.
        """
        rows = rows_of("scan_id", self.scan_id, "failures", failures)
        self._files.write(self._failure_path(key_hash(key)), rows, self._metadata(), lasting=False)

    def restage(self, keys: Mapping[tuple[object, ...], str]) -> None:
        """Stage the matrices of the committed scan again, so that only those that failed are left to do.

        Args:
            keys: tensor, role, head and expert of a matrix -> its key; others are not staged.

        Raises:
            StoreError: the store cannot be read or written.
        """
        known = self.staged()
        rows = _stack("matrices", [*read_result(self._files, "matrices", self.scan_id)])
        if not rows.num_rows:
            return
        for position, vectors in enumerate(self._by_matrix()):
            row = rows.slice(position, 1)
            place = tuple(row[name][0].as_py() for name in MATRIX_KEY)
            if place != tuple(vectors[name][0].as_py() for name in MATRIX_KEY):
                raise StoreError(
                    f"scan {self.scan_id!r} has rows in another order than rmtscan writes: scan again with `force`"
                )
            key = keys.get(place)
            if key is not None and key not in known:
                self.stage(key, row, vectors)

    def _by_matrix(self) -> Iterator[pa.Table]:
        """Yield the rows of `vectors` of each matrix, in the order of the file, a row group at a time."""
        waiting = no_rows("vectors")
        for rows in read_result(self._files, "vectors", self.scan_id):
            waiting = pa.concat_tables([waiting, complete("vectors", rows)]).combine_chunks()
            starts = pc.indices_nonzero(pc.equal(waiting["k"], 0)).to_pylist()
            for start, stop in itertools.pairwise(starts):
                yield waiting.slice(start, stop - start)
            waiting = waiting.slice(starts[-1]) if starts else waiting
        if waiting.num_rows:
            yield waiting

    def commit(self, scan: Mapping[str, object], *, clean_up: bool = True) -> bool:
        """Merge the staged parts into one sorted file per table and write the row of `scans`, which commits them.

        Committing can be repeated, and resumed after a crash at any point. If another driver committed the same scan since
        this writer was made, that result stands and the parts of this one are dropped.

        Args:
            scan: columns of `scans`. scan_id, model, matrices, vectors, failed, scanner_version and method are filled in, JSON
                columns may be given as dicts and lists, and columns that are left out are null.
            clean_up: call `clean_up` at the end; otherwise the caller does so later.

        Returns:
            Whether it is the result of this writer that stands.

        Raises:
            ValueError: an unknown column.
            StoreError: the store is full or cannot be written; the scan stays unfinished and can be resumed.
        """
        self._check_row(scan)
        stands = self._commit(lambda merged: scan)
        if clean_up:
            self.clean_up()
        return stands

    def _complete_row(self, row: Mapping[str, object], merged: Tables, rows: int) -> Mapping[str, object]:
        matrices = merged["matrices"]
        own: dict[str, object] = {"scan_id": self.scan_id, "model": self._model, "scanner_version": __version__}
        own |= {"matrices": matrices.num_rows, "vectors": rows, "failed": merged["failures"].num_rows}
        # Time of the workers over all runs that added to the scan: wall time would count other models, but not resumed parts.
        filled: dict[str, object] = {
            "method": self._method,
            "seconds": pc.sum(matrices["seconds"]).as_py(),
            **row,
            **own,
        }
        return {
            name: to_json(value) if isinstance(value, dict | list) else value  # columns with JSON
            for name, value in filled.items()
        }

    def _renamed(self, table: pa.Table) -> pa.Table:
        """Fill in also the name of the model, which may be another one than that of the run that staged a part."""
        table = super()._renamed(table)
        if "model" not in table.column_names:
            return table
        at, kind = table.column_names.index("model"), table.schema.field("model")
        return table.set_column(at, kind, pa.repeat(pa.scalar(self._model, kind.type), table.num_rows))

    def _merged_failures(self, names: Sequence[str]) -> Tables:
        parts = self._read_many(self._files.read, (self._failure_path(name) for name in names))
        if any(part is None for part in parts):
            raise _PartsGoneError
        return {"failures": _stack("failures", [part for part in parts if part is not None]).sort_by("tensor")}


class ComparisonWriter(Staging):
    """Writes one comparison of two models."""

    commits = "comparisons"
    id_column = "pair_id"
    largest = "pair_vectors"
    small = ("pairs", "pair_subspaces")
    folder = "staging-comparisons"

    @property
    def batch_id(self) -> str:
        """Id of the comparison."""
        return self.result_id

    def staged(self, keys: Sequence[str]) -> set[str]:
        """Return those of the keys whose part is complete."""
        names = {key_hash(key): key for key in keys}
        known = [name for name in self._names() if name in names]
        found = self._read_many(self._small_tables, known)
        complete_parts = [name for name, part in zip(known, found, strict=True) if part is not None]
        self._finished.update(complete_parts)
        return {names[name] for name in complete_parts}

    def stage(self, key: str, rows: Tables) -> None:
        """Keep the result of one pair: its rows of every table.

        Raises:
            ValueError: a table is missing, rows belong to another comparison, or columns do not fit the schema.
            StoreError: the store is full or cannot be written.
        """
        tables = {self.largest, *self.small}
        if {*rows} != tables:
            raise ValueError(f"{key!r}: rows of {sorted(tables)} expected, not of {sorted(rows)}")
        checked = {name: rows_of(self.id_column, self.batch_id, name, table) for name, table in rows.items()}
        self.stage_part(key, pack_part(key, self.largest, checked, one_row=self.small[0]))

    def commit(self, keys: Sequence[str], row_of: Callable[[Tables], Mapping[str, object]]) -> None:
        """Merge the parts of these keys into one sorted file per table and write the row of `comparisons`, which commits them.

        Args:
            keys: the pairs that belong to the comparison.
            row_of: returns the committing row for the merged tables `pairs` and `pair_subspaces`.

        Raises:
            ValueError: an unknown column.
            StoreError: the store is full or cannot be written, or a part is gone.
        """
        self._commit(row_of, keys)
        self.clean_up()

    # Earlier versions staged <table>/<hash of key>.parquet, without generations; the file of `pairs` was the last.

    def _names(self) -> list[str]:
        earlier = self._files.names(f"{self._root}/pairs") if self._generation == _FIRST else []
        return sorted({*super()._names(), *earlier})

    def _small_tables(self, name: str) -> SmallTables | None:
        found = super()._small_tables(name)
        if found is not None:
            return found
        tables = [self._earlier(table, name) for table in self.small]
        small = {table: rows for table, rows in zip(self.small, tables, strict=True) if rows is not None}
        return SmallTables(key="", tables=small) if len(small) == len(self.small) else None

    def _largest_table(self, name: str) -> pa.Table:
        try:
            return super()._largest_table(name)
        except _PartsGoneError:
            rows = self._earlier(self.largest, name)
            if rows is None:
                raise
            return sorted_by_rank(rows)

    def _earlier(self, table: str, name: str) -> pa.Table | None:
        if self._generation != _FIRST:
            return None
        rows = self._files.read(f"{self._root}/{table}/{name}.parquet")
        return None if rows is None else complete(table, rows)


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A scan that was begun and not committed: still running, or killed."""

    scan_id: str
    model: str | None
    """None if nothing of it is staged yet."""
    parts: int
    """Number of finished matrices; a resumed scan reuses them."""
    failures: int
    """Number of failed matrices; a resumed scan tries them again."""


def unfinished_scan(files: StoreFiles, scan_id: str) -> Unfinished:
    """Describe what is staged of a scan that is not committed.

    Raises:
        StoreError: the store cannot be read.
    """
    folder = f"{ScanWriter.folder}/{scan_id}/{_FIRST}"
    names = files.names(f"{folder}/finished", SUFFIX)
    failures = sorted({*files.names(f"{folder}/failures")} - {*names})
    contents = (files.read_bytes(f"{folder}/finished/{name}{SUFFIX}") for name in names[:1])
    parts = [read_small_tables(checked(content), ScanWriter.small) for content in contents]
    found = [part.tables["matrices"] for part in parts if part is not None]
    for name in failures[:1]:
        # Of an unfinished scan, or of a store that somebody else made: it may be damaged.
        with suppress(StoreError, pa.ArrowException):
            rows = files.read(f"{folder}/failures/{name}.parquet")
            found += [] if rows is None else [complete("failures", rows)]
    tables = [table for table in found if table.num_rows]
    model = tables[0]["model"][0].as_py() if tables else None
    return Unfinished(scan_id=scan_id, model=model, parts=len(names), failures=len(failures))


def _stack(name: str, parts: list[pa.Table]) -> pa.Table:
    return pa.concat_tables([no_rows(name), *(complete(name, part) for part in parts)])
