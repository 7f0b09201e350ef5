"""Compaction: many results with files of their own become groups with one file per table.

Readers see every result once at any moment: a result with a row of its own is read from its own files, any other from its group.
So the files of a group are written first, then the catalog that names them, and then the rows of the single results are removed,
which moves one result after the other into the group. Their other files stay for a while, for readers that looked them up before.
Whatever a crash leaves behind is either not visible, or the same as what is in the group; the next compaction removes it.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import PurePosixPath
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from scanner.errors import StoreError
from scanner.store.changing import changing
from scanner.store.checksums import FileRecord, records_in
from scanner.store.damage import damage
from scanner.store.files import StoreFiles
from scanner.store.groups import (
    FOLDER,
    GROUPED,
    PREFIX,
    Catalog,
    Group,
    Place,
    catalog,
    catalog_metadata,
    catalog_table,
    is_group,
    names_of,
    rows_in,
    write_notices,
)
from scanner.store.lease import Lease, lease
from scanner.store.row_groups import write_row_groups
from scanner.store.staging import ComparisonWriter, ScanWriter
from scanner.store.store import Store
from scanner.store.tables import (
    GROUPED_SCHEMA_VERSION,
    TABLES,
    complete,
    described,
    file_metadata,
    no_rows,
    tables_of,
)
from scanner.store.verification import commit_row

GROUP_BYTES = 1 << 30
"""Largest size of the files of a group, unless a single result is larger."""
GRACE = timedelta(hours=1)
"""How long replaced files stay for readers that looked them up before."""

_STAGING = {"scans": ScanWriter.folder, "comparisons": ComparisonWriter.folder}
_READERS = 16
#: Source files up to this size are read at once, so that an object store is asked once for them.
_SMALL_FILE = 64 << 20

Answer = TypeVar("Answer")
Given = TypeVar("Given")


@dataclass(frozen=True, kw_only=True)
class Compaction:
    """What was done, or would be done, to the scans or the comparisons of a store."""

    table: str
    """`scans` or `comparisons`."""
    results: int
    """Results that were moved into groups."""
    groups: int
    """Groups that were written."""
    merged: int
    """Earlier groups that are part of them."""
    files: int
    """Files of these results and groups before."""
    files_written: int
    bytes: int
    """Size of these files before."""
    bytes_written: int
    removed: int
    """Files of earlier compactions that were removed: they were replaced, or left by a crash."""
    waiting: int
    """Replaced files that stay until a later compaction."""
    left: tuple[tuple[str, str], ...] = ()
    """Results that keep files of their own, and why."""


@dataclass(frozen=True, kw_only=True)
class _Item:
    """A result that is going to be part of a group."""

    result: str
    row: pa.Table
    row_sha256: str
    bytes: int
    sources: Mapping[str, tuple[str, FileRecord | None, bool]]
    """Table -> file with its rows, its record, and whether it has rows of other results."""


def compact(
    store: Store,
    *,
    older_than: timedelta = timedelta(0),
    grace: timedelta = GRACE,
    group_bytes: int = GROUP_BYTES,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Compaction]:
    """Move scans and comparisons into groups.

    Results that are being computed again, damaged ones, and those that finished less than `older_than` ago keep their files.

    Args:
        store: the store.
        older_than: the smallest age of the results.
        grace: how long replaced files stay for readers that looked them up before.
        group_bytes: largest size of a group, unless a single result is larger.
        dry_run: only tell what would be done.
        progress: called with the number of results that are done, and of all.

    Returns:
        One entry for scans and one for comparisons.

    Raises:
        StoreError: another process changes the store, or it cannot be read or written.
    """
    files = StoreFiles(store.url)
    found = []
    if dry_run:
        return [_Run(files, table, None, older_than, grace, group_bytes, progress).plan() for table in GROUPED]
    with lease(files, "maintenance", doing="compacted") as held:
        for table in GROUPED:
            found.append(_Run(files, table, held, older_than, grace, group_bytes, progress).execute())
    return found


class _DamagedError(Exception):
    """The files of a result are not what was written."""

    def __init__(self, result: str, problem: str) -> None:
        super().__init__(result, problem)
        self.result, self.problem = result, problem


class _Run:
    """One compaction of one table."""

    def __init__(
        self,
        files: StoreFiles,
        table: str,
        held: Lease | None,
        older_than: timedelta,
        grace: timedelta,
        group_bytes: int,
        progress: Callable[[int, int], None],
    ) -> None:
        self.files, self.table, self.held = files, table, held
        self.older_than, self.grace, self.group_bytes, self.progress = older_than, grace, group_bytes, progress
        self.id_column, self.parts = GROUPED[table], tables_of(table)
        self.left: list[tuple[str, str]] = []
        self.own = names_of(files, table)
        self.catalog = catalog(files, table)
        self.busy = {*files.folders(_STAGING[table])}
        self.total = self.done = 0

    def plan(self) -> Compaction:
        items, moved, merged = self._chosen()
        bins = self._bins(items)
        files = sum(len(item.sources) + 1 for item in items if item.result in moved)
        files += sum(len(group.records) for group in merged)
        written = sum(len({table for item in one for table in item.sources}) for one in bins)
        return Compaction(
            table=self.table,
            results=len(moved),
            groups=len(bins),
            merged=len(merged),
            files=files,
            files_written=written + bool(bins),
            bytes=sum(item.bytes for item in items if item.result in moved) + sum(group.bytes for group in merged),
            bytes_written=0,
            removed=len(self._obsolete(self.catalog)),
            waiting=0,
            left=tuple(self.left),
        )

    def execute(self) -> Compaction:
        removed = self._clean_up(self.catalog)
        items, moved, merged = self._chosen()
        planned = self._bins(items)
        self.total = len(items)
        files = sum(len(item.sources) + 1 for item in items if item.result in moved)
        files += sum(len(group.records) for group in merged)
        before = sum(item.bytes for item in items if item.result in moved) + sum(group.bytes for group in merged)
        groups, written = [], []
        for one in planned:
            group, whole = self._write_group(one)
            if group is not None:
                groups.append(group)
                written += [(item, group.name) for item in whole]
        new = self.catalog
        if written or merged or len(self.catalog.files) > 1:
            new = self._publish(written, groups, {group.name for group in merged})
        self._remove_rows(new)
        removed += self._clean_up(new) if not self.grace else 0
        return Compaction(
            table=self.table,
            results=len({item.result for item, _ in written} & {*moved}),
            groups=len(groups),
            merged=len(merged),
            files=files,
            files_written=sum(len(group.records) for group in groups) + bool(written),
            bytes=before,
            bytes_written=sum(group.bytes for group in groups),
            removed=removed,
            waiting=0 if not self.grace else len(self._obsolete(new)),
            left=tuple(self.left),
        )

    # ---- what is compacted

    def _chosen(self) -> tuple[list[_Item], set[str], list[Group]]:
        """Return what the new groups contain: results with files of their own, and those of earlier groups that are merged."""
        items = [item for item in self._many(self._own_item, self.own) if item is not None]
        moved = {item.result for item in items}
        if len(items) < 2 and not self.catalog.groups:
            return [], set(), []
        size = sum(item.bytes for item in items)
        merged = []
        live = {name: [one for one in self.catalog.live(name) if one not in moved] for name in self.catalog.groups}
        for group in sorted(self.catalog.groups.values(), key=lambda group: (group.bytes, group.name)):
            dead = len(group.dead) + len(self.catalog.live(group.name)) - len(live[group.name])
            half_dead = dead > 0 and dead >= len(live[group.name])
            # Merging only what is not much larger than what is new keeps the total work small, and the number of groups.
            small = items and group.bytes <= 2 * size and size + group.bytes <= self.group_bytes
            if small or half_dead:
                merged.append(group)
                size += group.bytes
        for group in [*merged]:
            if live[group.name] and self._is_damaged(group):
                merged.remove(group)
                continue
            items += [self._grouped_item(group, result, len(live[group.name])) for result in live[group.name]]
        return sorted(items, key=lambda item: item.result), moved, merged

    def _own_item(self, result: str) -> _Item | None:
        if result in self.busy:
            self._leave(result, "it is being computed")
            return None
        content = self.files.read_bytes(f"{self.table}/{result}.parquet")
        if content is None:
            return None
        digest = hashlib.sha256(content).hexdigest()
        if self.catalog.row_sha256.get(result) == digest:
            return None  # an earlier compaction ended before it removed the row
        try:
            row = commit_row(self.files, self.table, result)
            records = records_in(row["files"])
            stored = complete(self.table, pq.ParquetFile(io.BytesIO(content)).read())
        except (StoreError, ValueError, pa.ArrowException) as error:
            self._leave(result, f"its row is damaged: {error}")
            return None
        finished = row["finished_at"]
        if self.older_than and (finished is None or datetime.now(UTC) - finished < self.older_than):
            self._leave(result, "it is too new")
            return None
        sources, size = {}, len(content)
        for table in self.parts:
            path = f"{table}/{result}.parquet"
            counted = TABLES[table].counted_by
            if counted and not row[counted]:
                continue
            record = (records or {}).get(path)
            stored_bytes = self.files.size(path) if record is None else record.bytes
            if stored_bytes is None:
                self._leave(result, f"{path} is missing")
                return None
            sources[table] = (path, record, False)
            size += stored_bytes
        return _Item(result=result, row=stored, row_sha256=digest, bytes=size, sources=sources)

    def _grouped_item(self, group: Group, result: str, among: int) -> _Item:
        row = self.catalog.row(result)
        assert row is not None
        paths = {table: path for table in self.parts if (path := group.path(table)) is not None}
        counts = {table: row[counted][0].as_py() for table in paths if (counted := TABLES[table].counted_by)}
        return _Item(
            result=result,
            row=row,
            row_sha256=self.catalog.row_sha256[result],
            bytes=group.bytes // max(1, among),
            sources={table: (path, group.records[path], True) for table, path in paths.items() if counts.get(table, 1)},
        )

    def _is_damaged(self, group: Group) -> bool:
        for path, record in group.records.items():
            problem = damage(self.files, path, record)
            if problem is not None:
                self._leave(group.name, f"{path} {problem}")
                return True
        return False

    def _bins(self, items: Sequence[_Item]) -> list[list[_Item]]:
        """Divide sorted items into groups of consecutive ids."""
        bins: list[list[_Item]] = []
        size = 0
        for item in items:
            if not bins or size + item.bytes > self.group_bytes:
                bins.append([])
                size = 0
            bins[-1].append(item)
            size += item.bytes
        return bins

    def _leave(self, result: str, why: str) -> None:
        self.left.append((result, why))

    # ---- writing

    def _write_group(self, items: Sequence[_Item]) -> tuple[Group | None, list[_Item]]:
        """Write the files of a group; returns it with the items that are whole."""
        whole = [*items]
        name = f"{PREFIX}{uuid.uuid4().hex}"
        while whole:
            try:
                records = {}
                for table in self.parts:
                    having = [item for item in whole if table in item.sources]
                    if having:
                        path = f"{table}/{name}.parquet"
                        records[path] = self._write_table(path, table, having)
            except _DamagedError as error:
                self._leave(error.result, error.problem)
                whole = [item for item in whole if item.result != error.result]
            else:
                self.done += len(items)
                self.progress(self.done, self.total)
                return Group(name=name, records=records), whole
        return None, []

    def _write_table(self, path: str, table: str, items: Sequence[_Item]) -> FileRecord:
        metadata = file_metadata({}, schema_version=str(GROUPED_SCHEMA_VERSION))
        schema = TABLES[table].described.with_metadata(metadata)
        parts = (described(table, part) for part in self._rows(table, items))
        with self.files.replacing(path) as file:
            rows = write_row_groups(file, schema, parts, write_page_checksum=True)
            return file.record(rows)

    def _rows(self, table: str, items: Sequence[_Item]) -> Iterator[pa.Table]:
        """Yield the rows of the items, of which some are read ahead.

        Raises:
            _DamagedError: those of an item are not what was written.
        """
        for start in range(0, len(items), _READERS):
            some = items[start : start + _READERS]
            contents = self._many(partial(self._small_file, table), some)
            for item, content in zip(some, contents, strict=True):
                path, _, grouped = item.sources[table]
                at = Place(path=path, id_column=self.id_column, result=item.result, grouped=grouped)
                with self.files.reading(path) if content is None else io.BytesIO(content) as file:
                    for rows in rows_in(file, at):
                        yield complete(table, rows)
            if self.held is not None:
                self.held.check()

    def _small_file(self, table: str, item: _Item) -> bytes | None:
        """Return the content of a file of one result, or None if it is large or that of a group; it is what was written."""
        path, record, grouped = item.sources[table]
        if grouped:
            return None
        counted = TABLES[table].counted_by
        rows = item.row[counted][0].as_py() if counted else None
        if record is None or record.bytes > _SMALL_FILE:
            problem = damage(self.files, path, record, rows=rows)
            if problem is not None:
                raise _DamagedError(item.result, f"{path} {problem}")
            return None
        content = self.files.read_bytes(path)
        if content is None or hashlib.sha256(content).hexdigest() != record.sha256:
            problem = "is missing" if content is None else "has another checksum than when it was written"
            raise _DamagedError(item.result, f"{path} {problem}")
        return content

    def _publish(self, written: Sequence[tuple[_Item, str]], groups: Sequence[Group], merged: set[str]) -> Catalog:
        """Write the catalog that names the new groups, and remove those that it replaces."""
        moved = {item.result for item, _ in written}
        kept = [result for result in self.catalog.group_of if result not in moved]
        rows = {result: self.catalog.row(result) for result in kept} | {item.result: item.row for item, _ in written}
        group_of = {result: self.catalog.group_of[result] for result in kept}
        group_of |= {item.result: name for item, name in written}
        digests = {result: self.catalog.row_sha256[result] for result in kept}
        digests |= {item.result: item.row_sha256 for item, _ in written}
        remaining = {*group_of.values()}
        stay = {
            name: replace(group, dead=tuple(sorted({*group.dead, *({*self.catalog.live(name)} & moved)})))
            for name, group in self.catalog.groups.items()
            if name not in merged and name in remaining
        }
        new = Catalog(
            commits=self.table,
            rows=pa.concat_tables([no_rows(self.table), *(row for _, row in sorted(rows.items()) if row is not None)]),
            group_of=group_of,
            row_sha256=digests,
            groups=stay | {group.name: group for group in groups if group.name in remaining},
        )
        if self.held is not None:
            self.held.check()
        write_catalog(self.files, new, replaces=self.catalog)
        return catalog(self.files, self.table)

    def _remove_rows(self, new: Catalog) -> None:
        """Remove the rows of single results that are in a group, so that they are read from there."""
        busy = {*self.files.folders(_STAGING[self.table])}

        def remove(result: str) -> None:
            path = f"{self.table}/{result}.parquet"
            with changing(self.files, result):  # otherwise a row that is committed between the two would be removed
                content = self.files.read_bytes(path)
                if content is not None and hashlib.sha256(content).hexdigest() == new.row_sha256[result]:
                    self.files.remove(path)

        self._many(remove, [result for result in self.own if result in new.group_of and result not in busy])

    # ---- what is left over

    def _clean_up(self, found: Catalog) -> int:
        """Remove files that no reader needs; returns their number."""
        paths = self._obsolete(found)
        if found.written_at is not None and datetime.now(UTC) - found.written_at < self.grace:
            paths = []
        of_result: dict[str, list[str]] = {}
        shared = []
        for path in paths:
            name = PurePosixPath(path).stem
            if name in found.group_of:
                of_result.setdefault(name, []).append(path)
            else:
                shared.append(path)
        self._many(self.files.remove, shared)
        return len(shared) + sum(
            self._many(lambda result: self._remove_replaced(found, result, of_result[result]), of_result)
        )

    def _remove_replaced(self, found: Catalog, result: str, paths: Sequence[str]) -> int:
        """Remove the files of a grouped result that it had before, unless it is committed again meanwhile; returns their number."""
        with changing(self.files, result):
            if self.files.is_file(f"{self.table}/{result}.parquet"):
                return 0
            old = [path for path in paths if self._is_replaced(found, self.files.modified(path))]
            for path in old:
                self.files.remove(path)
        return len(old)

    @staticmethod
    def _is_replaced(found: Catalog, modified: datetime | None) -> bool:
        """Whether a file is older than the groups; a later one belongs to a run that has not written its row yet."""
        return found.written_at is not None and modified is not None and modified <= found.written_at

    def _obsolete(self, found: Catalog) -> list[str]:
        """Return files that are not read: of catalogs and groups that were replaced or not finished, and of grouped results."""
        paths = [f"{FOLDER}/{name}.parquet" for name in found.obsolete]
        own = {*names_of(self.files, self.table)}
        busy = {*self.files.folders(_STAGING[self.table])}
        for table in self.parts:
            for name, modified in self.files.entries(table):
                path = f"{table}/{name}.parquet"
                if is_group(name):
                    if not any(path in group.records for group in found.groups.values()):
                        paths.append(path)
                    continue
                if (
                    self._is_replaced(found, modified)
                    and name in found.group_of
                    and name not in own
                    and name not in busy
                ):
                    paths.append(path)
        return paths

    def _many(self, call: Callable[[Given], Answer], names: Iterable[Given]) -> list[Answer]:
        """Call for each: in threads on an object store, where latency dominates."""
        if self.files.local:
            return [call(name) for name in names]
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(call, names))


def write_catalog(files: StoreFiles, new: Catalog, *, replaces: Catalog) -> None:
    """Write a catalog in place of others, which makes its groups visible in one step; the others are removed.

    Raises:
        StoreError: the store cannot be written.
    """
    now = datetime.now(UTC)
    name = f"{new.commits}-{uuid.uuid4().hex}"
    if new.groups:
        write_notices(files)
    old = [*replaces.files, *replaces.obsolete]
    metadata = catalog_metadata(new, replaces=old, written_at=now)
    files.write(f"{FOLDER}/{name}.parquet", catalog_table(new), metadata)
    for one in old:
        files.remove(f"{FOLDER}/{one}.parquet")
