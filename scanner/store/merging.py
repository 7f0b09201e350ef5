"""Merging: the results of one store are copied into another, checked on the way, the row that commits each of them last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from scanner.errors import ConfigError, StoreError
from scanner.store.changing import changing
from scanner.store.checksums import FileRecord, records_as_json, records_in
from scanner.store.damage import damage
from scanner.store.files import StoreFiles
from scanner.store.groups import GROUPED, has_row, names_of, place, results, row_of
from scanner.store.lease import Lease, lease
from scanner.store.staging import ComparisonWriter, ScanWriter
from scanner.store.store import Store
from scanner.store.tables import TABLES, complete, experiment_tables, shared_tables, tables_of
from scanner.store.transfer import metadata_of, write_rows
from scanner.store.verification import COMMITTING, commit_row, problem_of

State = Literal["copied", "kept", "replaced", "damaged", "busy"]
"""`kept`: the store has it already; `replaced`: what it had was damaged; `damaged`: in the source, so not copied; `busy`: it is
being computed in the store."""

_STAGING = {"scans": ScanWriter.folder, "comparisons": ComparisonWriter.folder}
_BLOCK = 8 << 20
#: How often a result of the source is looked up that other processes compact or compute again.
_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What became of one result, or of one file that belongs to none."""

    source: str
    """URL of the store that it comes from."""
    table: str
    result: str
    state: State
    problem: str = ""


def merge(
    source: Store, into: Store, *, dry_run: bool = False, progress: Callable[[Merged], None] = lambda done: None
) -> list[Merged]:
    """Copy scans, comparisons, experiments and controls that a store does not have from another.

    What the store has is kept, unless it is damaged and that of the source is whole. Copying again does nothing.

    Args:
        source: the store that is read.
        into: the store that is written.
        dry_run: only tell what would be done. Then the source is not read as a whole.
        progress: called for every result.

    Returns:
        One entry per result of the source, and per file of `controls` and `matrix_controls`.

    Raises:
        ConfigError: both are the same store.
        StoreError: a store cannot be read, or the other cannot be written, or is being compacted or cleaned.
    """
    if source.url == into.url:
        raise ConfigError("into", f"is the store that is read, {into.url!r}: name another one")
    files = StoreFiles(into.url)
    if dry_run:
        return _all(_Merge(StoreFiles(source.url), files, None), progress)
    with lease(files, "maintenance", doing="merged into") as held:
        return _all(_Merge(StoreFiles(source.url), files, held), progress)


def _all(run: _Merge, progress: Callable[[Merged], None]) -> list[Merged]:
    found = []
    for table in COMMITTING:
        names = results(run.source, table) if table in GROUPED else names_of(run.source, table)
        if table == "experiments":
            # Their points count by themselves, and may belong to runs that have not ended.
            points = [
                (part, name) for part in experiment_tables() if part != table for name in names_of(run.source, part)
            ]
            for part, name in points:
                one = run.file(part, name)
                if one.state != "kept":
                    found.append(one)
                    progress(one)
        for name in names:
            found.append(run.result(table, name) if table in GROUPED else run.file(table, name))
            progress(found[-1])
    for table in shared_tables():
        for name in names_of(run.source, table):
            found.append(run.file(table, name))
            progress(found[-1])
    return found


class _Merge:
    """One merge; without the lease of the target nothing is written."""

    def __init__(self, source: StoreFiles, into: StoreFiles, held: Lease | None) -> None:
        self.source, self.into, self.held = source, into, held

    def result(self, table: str, name: str) -> Merged:
        """Copy a scan or a comparison."""
        if self.held is None:
            return self._result(table, name)
        if self._is_kept(table, name):  # most of them, if a store is merged again: without a lease for each
            return self._merged(table, name, "kept")
        self.held.check()
        with changing(self.into, name):  # a scan of the same content may be committed at this moment
            return self._result(table, name)

    def _result(self, table: str, name: str) -> Merged:
        if self._is_kept(table, name):
            return self._merged(table, name, "kept")
        state: State = "replaced" if has_row(self.into, table, name) else "copied"
        if state == "copied" and self.into.is_folder(f"{_STAGING[table]}/{name}"):
            return self._merged(table, name, "busy", "it is being computed there: it is copied once that has ended")
        problem: str | None = None
        for _ in range(_TRIES):
            problem = problem_of(self.source, table, name, deep=self.held is not None)
            if problem is not None or self.held is None:
                break
            try:
                self._copy_result(table, name)
            except _DamagedError as error:  # or another process has changed the source since it was looked up
                problem = str(error)
            except StoreError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                problem = str(error)
            else:
                break
        if problem is not None:
            return self._merged(table, name, "damaged", problem)
        return self._merged(table, name, state)

    def _is_kept(self, table: str, name: str) -> bool:
        """Whether the store has a result, and it is whole."""
        return has_row(self.into, table, name) and problem_of(self.into, table, name, deep=self.into.local) is None

    def _copy_result(self, table: str, name: str) -> None:
        content = self.source.read_bytes(f"{table}/{name}.parquet")
        single = row_of(self.source, table, name)
        if single is None:
            raise _DamagedError("it was removed while it was copied")
        row = commit_row(self.source, table, name)
        records = (records_in(row["files"]) if content is not None else None) or {}
        written: dict[str, FileRecord] = {}
        for part in tables_of(table):
            at = place(self.source, part, name)
            counted = TABLES[part].counted_by
            path = f"{part}/{name}.parquet"
            if at is None or (counted and not row[counted] and path not in records):
                continue
            if at.grouped:
                written[path] = self._extract(part, name, row)
            else:
                written[path] = self._copy(path, records.get(path))
        if self.source.read_bytes(f"{table}/{name}.parquet") != content:
            raise _DamagedError("it was compacted or computed again while it was copied")
        if content is not None:
            self.into.write_bytes(f"{table}/{name}.parquet", content)
            return
        changed = complete(table, single).to_pylist()[0] | {"files": records_as_json(written)}
        rows = pa.Table.from_pylist([changed], schema=TABLES[table].described)
        self.into.write(f"{table}/{name}.parquet", rows, metadata_of(row))

    def _extract(self, table: str, name: str, row: dict[str, Any]) -> FileRecord:
        with self.into.replacing(f"{table}/{name}.parquet") as file:
            count = write_rows(self.source, table, name, file, metadata_of(row))  # type: ignore[arg-type]
            return file.record(count)

    def _copy(self, path: str, record: FileRecord | None) -> FileRecord:
        """Copy one file; its content is compared with the record before it becomes visible."""
        with self.source.reading(path) as read, self.into.replacing(path) as file:
            while block := read.read(_BLOCK):
                file.write(block)
            copied = file.record(0 if record is None else record.rows)
            if record is not None and copied != record:
                raise _DamagedError(f"{self.source.full(path)!r} has another checksum than when it was written")
            return copied

    def file(self, table: str, name: str) -> Merged:
        """Copy a file that counts by itself."""
        path = f"{table}/{name}.parquet"
        state: State = "copied"
        if self.into.is_file(path):
            if damage(self.into, path, None, deep=self.into.local) is None:
                return self._merged(table, name, "kept")
            state = "replaced"
        content = self.source.read_bytes(path)
        problem = "was removed" if content is None else damage(self.source, path, None)
        if problem is not None or content is None:
            return self._merged(table, name, "damaged", f"{self.source.full(path)!r} {problem}")
        if self.held is not None:
            self.held.check()
            self.into.write_bytes(path, content)
        return self._merged(table, name, state)

    def _merged(self, table: str, name: str, state: State, problem: str = "") -> Merged:
        return Merged(source=self.source.url, table=table, result=name, state=state, problem=problem)


class _DamagedError(StoreError):
    """The source of a copy is not what was written."""
