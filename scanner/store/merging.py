"""Merging: the results of one store are copied into another, checked on the way, the row that commits each of them last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from scanner.errors import ConfigError, StoreError
from scanner.store.checksums import FileRecord, damage, records_as_json, records_in
from scanner.store.files import StoreFiles
from scanner.store.groups import GROUPED, has_row, names_of, place, results, row_of
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
        StoreError: a store cannot be read, or the other cannot be written.
    """
    if source.url == into.url:
        raise ConfigError("into", f"is the store that is read, {into.url!r}: name another one")
    run = _Merge(StoreFiles(source.url), StoreFiles(into.url), dry_run)
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
    def __init__(self, source: StoreFiles, into: StoreFiles, dry_run: bool) -> None:
        self.source, self.into, self.dry_run = source, into, dry_run
        self.busy = {table: {*into.folders(folder)} for table, folder in _STAGING.items()}

    def result(self, table: str, name: str) -> Merged:
        """Copy a scan or a comparison."""
        state: State = "copied"
        if has_row(self.into, table, name):
            if problem_of(self.into, table, name, deep=self.into.local) is None:
                return self._merged(table, name, "kept")
            state = "replaced"
        elif name in self.busy[table]:
            return self._merged(table, name, "busy", "it is being computed there: it is copied once that has ended")
        problem = problem_of(self.source, table, name, deep=not self.dry_run)
        if problem is not None:
            return self._merged(table, name, "damaged", problem)
        if self.dry_run:
            return self._merged(table, name, state)
        try:
            self._copy_result(table, name)
        except _DamagedError as error:
            return self._merged(table, name, "damaged", str(error))
        return self._merged(table, name, state)

    def _copy_result(self, table: str, name: str) -> None:
        row = commit_row(self.source, table, name)
        own = self.source.is_file(f"{table}/{name}.parquet")
        records = (records_in(row["files"]) if own else None) or {}
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
        content = self.source.read_bytes(f"{table}/{name}.parquet") if own else None
        if content is not None:
            self.into.write_bytes(f"{table}/{name}.parquet", content)
            return
        single = row_of(self.source, table, name)
        if single is None:
            raise _DamagedError("it was removed while it was copied")
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
        if not self.dry_run:
            self.into.write_bytes(path, content)
        return self._merged(table, name, state)

    def _merged(self, table: str, name: str, state: State, problem: str = "") -> Merged:
        return Merged(source=self.source.url, table=table, result=name, state=state, problem=problem)


class _DamagedError(StoreError):
    """The source of a copy is not what was written."""
