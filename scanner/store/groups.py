"""Groups of compacted results: which results they contain, and reading one of them.

A group has one file per table, `STORE/<table>/compacted-<hash>.parquet`, with the rows of many scans (or comparisons) sorted by id.
Catalogs say what counts: `STORE/groups/scans-<hash>.parquet` holds the rows of table `scans` of all grouped scans, for each its
group, and in its metadata the records of the files. One PUT of a catalog makes groups visible. A result that also has a row of its
own in `STORE/scans/` is read from its own files: they are the same, or those of a later run.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scanner.errors import StoreError
from scanner.store.checksums import SEAL, FileRecord, is_safe_id, record_in, seal_is_broken
from scanner.store.files import StoreFiles
from scanner.store.tables import (
    GROUPED_SCHEMA_VERSION,
    TABLES,
    complete,
    described,
    file_metadata,
    json_object,
    no_rows,
    tables_of,
    to_json,
)

FOLDER = "groups"
GROUPED = {"scans": "scan_id", "comparisons": "pair_id"}
"""Tables whose results can be grouped, with the column of the id."""
NOTICE = "this store has compacted groups - use rmtscan 0.2 or later"
"""Name of files at which earlier versions stop, because they would answer without the grouped results; their errors show it."""

PREFIX = "compacted-"
"""Beginning of the name of a group."""
_GROUP = re.compile(rf"{PREFIX}[0-9a-f]{{32}}")
_METADATA = "groups"
_GROUP_COLUMN, _ROW_COLUMN = "rmtscan_group", "rmtscan_row_sha256"
_TRIES = 5
_BATCH = 100_000
_READERS = 16


def is_group(name: str) -> bool:
    """Whether a file of a table holds a group of results."""
    return _GROUP.fullmatch(name) is not None


@dataclass(frozen=True, kw_only=True)
class Group:
    """One group."""

    name: str
    records: Mapping[str, FileRecord]
    """Path of each file -> what was written."""
    dead: tuple[str, ...] = ()
    """Results that the files contain and that no longer count: they were removed, or are in a later group."""

    def path(self, table: str) -> str | None:
        """Return the file of a table; None if the group has no rows of it."""
        path = f"{table}/{self.name}.parquet"
        return path if path in self.records else None

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(record.bytes for record in self.records.values())


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """What is grouped of the scans or of the comparisons of a store."""

    commits: str
    """`scans` or `comparisons`."""
    rows: pa.Table
    """Rows of that table, one per grouped result, sorted by id."""
    group_of: Mapping[str, str]
    """Id of a result -> name of its group."""
    row_sha256: Mapping[str, str]
    """Id of a result -> SHA-256 of the file that held its row before; it names the generation of staged parts."""
    groups: Mapping[str, Group] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    """Names of the catalogs that this was read from."""
    obsolete: tuple[str, ...] = ()
    """Names of catalogs that others replace, and that can be removed."""
    written_at: datetime | None = None
    """When the newest catalog was written; None without catalogs."""

    def row(self, result: str) -> pa.Table | None:
        """Return the row of a grouped result, or None."""
        at = self._positions.get(result)
        return None if at is None else self.rows.slice(at, 1)

    def live(self, group: str) -> list[str]:
        """Return the ids of the results of a group that count, sorted."""
        return self._live.get(group, [])

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {str(found): at for at, found in enumerate(self.rows[GROUPED[self.commits]].to_pylist())}

    @cached_property
    def _live(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for result in sorted(self.group_of):
            found.setdefault(self.group_of[result], []).append(result)
        return found


def empty(commits: str) -> Catalog:
    """Return the catalog of a store without groups."""
    return Catalog(commits=commits, rows=no_rows(commits), group_of={}, row_sha256={})


def catalog(files: StoreFiles, commits: str) -> Catalog:
    """Read what is grouped. It is kept in memory and read again if another process has changed it.

    List results with files of their own before: a result that is moved into a group meanwhile is then found in the group.

    Raises:
        StoreError: a catalog is damaged, or of a newer version, or the store cannot be read.
    """
    if commits not in GROUPED:
        return empty(commits)
    for _ in range(_TRIES):
        listed = [(name, version) for name, version in files.versions(FOLDER) if name.startswith(f"{commits}-")]
        known = files.memory.get(f"groups of {commits}")
        if known is not None and known[0] == listed:
            return known[1]  # type: ignore[no-any-return]
        contents = {name: files.read_bytes(f"{FOLDER}/{name}.parquet") for name, _ in listed}
        read = {name: content for name, content in contents.items() if content is not None}
        if len(read) == len(contents):
            found = _together(files, commits, read)
            files.memory[f"groups of {commits}"] = (listed, found)
            return found
    raise StoreError(f"the groups of store {files.url!r} change faster than they can be read: run the command again")


def _together(files: StoreFiles, commits: str, contents: Mapping[str, bytes]) -> Catalog:
    one_by_one = {name: _parsed(files, commits, name, content) for name, content in contents.items()}
    replaced = {old for _, replaces in one_by_one.values() for old in replaces}
    # Two that do not know each other were written by two processes at the same time: a result counts in the later one.
    counting = sorted(
        (found for name, (found, _) in one_by_one.items() if name not in replaced),
        key=lambda found: (found.written_at, found.files),
    )
    obsolete = tuple(sorted(replaced & {*contents}))
    if not counting:
        return empty(commits)
    if len(counting) == 1:
        [only] = counting
        return Catalog(**{**_fields(only), "obsolete": obsolete})
    group_of: dict[str, str] = {}
    row_sha256: dict[str, str] = {}
    of_result: dict[str, Catalog] = {}
    groups: dict[str, Group] = {}
    for one in counting:
        groups |= one.groups
        for result in one.group_of:
            of_result[result] = one
            group_of[result], row_sha256[result] = one.group_of[result], one.row_sha256[result]
    rows = [of_result[result].row(result) for result in sorted(of_result)]
    dead: dict[str, set[str]] = {name: {*group.dead} for name, group in groups.items()}
    for one in counting:
        for result, group in one.group_of.items():
            if group_of[result] != group:
                dead[group].add(result)
    return Catalog(
        commits=commits,
        rows=pa.concat_tables([no_rows(commits), *(row for row in rows if row is not None)]),
        group_of=group_of,
        row_sha256=row_sha256,
        groups={
            name: Group(name=name, records=group.records, dead=tuple(sorted(dead[name])))
            for name, group in groups.items()
        },
        files=tuple(sorted(name for one in counting for name in one.files)),
        obsolete=obsolete,
        written_at=counting[-1].written_at,
    )


def _fields(one: Catalog) -> dict[str, Any]:
    names = ("commits", "rows", "group_of", "row_sha256", "groups", "files", "obsolete", "written_at")
    return {name: getattr(one, name) for name in names}


def _parsed(files: StoreFiles, commits: str, name: str, content: bytes) -> tuple[Catalog, tuple[str, ...]]:
    """Read one catalog, and the names of those that it replaces. It may come from anybody."""
    path = files.full(f"{FOLDER}/{name}.parquet")
    remedy = "restore it from a copy, or remove it and scan again what it contained"
    try:
        table = pq.ParquetFile(io.BytesIO(content)).read()
        metadata = table.schema.metadata or {}
        if _version(metadata) > GROUPED_SCHEMA_VERSION:
            raise StoreError(
                f"store {files.url!r} was compacted by a newer version of rmtscan: upgrade rmtscan to read it"
            )
        seal = metadata.get(SEAL.encode(), b"").decode("ascii", "replace")
        if seal_is_broken(content, seal):
            raise ValueError("its checksum is another")
        about = json_object(metadata.get(f"rmtscan.{_METADATA}".encode()))
        groups = {str(one): _group(commits, str(one), values) for one, values in about["groups"].items()}
        replaces = tuple(str(old) for old in about["replaces"])
        written_at = datetime.fromisoformat(about["written_at"]).astimezone(UTC)
        results = [str(one) for one in table[GROUPED[commits]].to_pylist()]
        group_of = dict(zip(results, map(str, table[_GROUP_COLUMN].to_pylist()), strict=True))
        row_sha256 = dict(zip(results, map(str, table[_ROW_COLUMN].to_pylist()), strict=True))
        if not all(map(is_safe_id, results)) or len(group_of) != len(results) or not {*group_of.values()} <= {*groups}:
            raise ValueError("its results are not those of its groups")
        rows = complete(commits, table)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise StoreError(f"{path!r} is damaged ({reason}): {remedy}") from error
    found = Catalog(
        commits=commits,
        rows=rows,
        group_of=group_of,
        row_sha256=row_sha256,
        groups=groups,
        files=(name,),
        written_at=written_at,
    )
    return found, replaces


def _group(commits: str, name: str, values: Mapping[str, Any]) -> Group:
    if not is_group(name):
        raise ValueError("it names a group that is none")
    records = {str(path): record_in(record) for path, record in values["files"].items()}
    if not {*records} <= {f"{table}/{name}.parquet" for table in tables_of(commits)}:
        raise ValueError("it names a file that is none of its groups")
    dead = tuple(str(one) for one in values.get("dead", ()))
    return Group(name=name, records=records, dead=dead)


def _version(metadata: Mapping[bytes, bytes]) -> int:
    text = metadata.get(b"rmtscan.schema_version", b"").decode("ascii", "replace")
    return int(text) if text.isdecimal() else 0


def catalog_table(found: Catalog) -> pa.Table:
    """Return the rows of a catalog with the group of each, as they are written."""
    results = found.rows[GROUPED[found.commits]].to_pylist()
    table = described(found.commits, found.rows)
    table = table.append_column(_GROUP_COLUMN, pa.array([found.group_of[one] for one in results], pa.string()))
    return table.append_column(_ROW_COLUMN, pa.array([found.row_sha256[one] for one in results], pa.string()))


def catalog_metadata(found: Catalog, *, replaces: Sequence[str], written_at: datetime) -> dict[str, str]:
    """Return the key-value metadata of a catalog."""
    about = {
        "written_at": written_at.isoformat(),
        "replaces": sorted(replaces),
        "groups": {
            name: {
                "files": {path: asdict(record) for path, record in group.records.items()},
                **({"dead": sorted(group.dead)} if group.dead else {}),
            }
            for name, group in found.groups.items()
        },
    }
    return file_metadata({}, schema_version=str(GROUPED_SCHEMA_VERSION), **{_METADATA: to_json(about)})


# ---- one result


@dataclass(frozen=True, kw_only=True)
class Place:
    """The rows of one result in one table."""

    path: str
    id_column: str
    result: str
    grouped: bool
    """Whether the file also has rows of other results."""


def place(files: StoreFiles, table: str, result: str) -> Place | None:
    """Return where the rows of a result are: in a file of its own, or in a group; None if it has none.

    Raises:
        StoreError: the store cannot be read.
    """
    commits = TABLES[table].listed_by
    id_column = GROUPED.get(commits, "")
    own = Place(path=f"{table}/{result}.parquet", id_column=id_column, result=result, grouped=False)
    if commits not in GROUPED:
        return own if files.is_file(own.path) else None
    if files.is_file(f"{commits}/{result}.parquet"):
        if files.is_file(own.path):
            return own
        if files.is_file(f"{commits}/{result}.parquet"):  # otherwise it was moved into a group between the two
            return None
    found = catalog(files, commits)
    if result not in found.group_of:
        return None
    path = found.groups[found.group_of[result]].path(table)
    return None if path is None else Place(path=path, id_column=id_column, result=result, grouped=True)


def read_result(files: StoreFiles, table: str, result: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of a result in the order in which they were written, some 100,000 at a time; nothing if there are none.

    Of a group, only the row groups whose statistics include the result are read. Checksums of pages are compared.

    Raises:
        StoreError: the file is damaged or cannot be read.
    """
    for last in (False, True):
        at = place(files, table, result)
        if at is None:
            return
        begun = False
        try:
            with files.reading(at.path) as file:
                for rows in rows_in(file, at, columns):
                    begun = True
                    yield rows
            return
        except StoreError as error:
            # Another process has compacted the store since it was looked up.
            if last or begun or not isinstance(error.__cause__, FileNotFoundError):
                raise
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise StoreError(f"{files.full(at.path)!r} is damaged ({reason}): scan again with `force`") from error


def rows_in(file: IO[bytes], at: Place, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of a result from an open file; see `read_result`."""
    parquet = pq.ParquetFile(file, page_checksum_verification=at.grouped)
    stored = parquet.schema_arrow.names
    names = stored if columns is None else [name for name in columns if name in stored]
    if not at.grouped:
        for batch in parquet.iter_batches(batch_size=_BATCH, columns=names):
            yield pa.Table.from_batches([batch])
        return
    groups = [index for index in range(parquet.num_row_groups) if _may_contain(parquet, index, at)]
    read = [*dict.fromkeys([*names, at.id_column])]
    if not groups:
        return
    for batch in parquet.iter_batches(batch_size=_BATCH, row_groups=groups, columns=read):
        rows = pa.Table.from_batches([batch])
        rows = rows.filter(pc.equal(rows[at.id_column], at.result))
        if rows.num_rows:
            yield rows.select(names)


def _may_contain(parquet: pq.ParquetFile, index: int, at: Place) -> bool:
    position = parquet.schema_arrow.names.index(at.id_column)
    statistics = parquet.metadata.row_group(index).column(position).statistics
    if statistics is None or not statistics.has_min_max:
        return True
    return bool(statistics.min <= at.result <= statistics.max)


def row_of(files: StoreFiles, commits: str, result: str) -> pa.Table | None:
    """Return the row that commits a result, as it was written, from its own file or a catalog; None if there is none.

    Raises:
        StoreError: it is damaged, or the store cannot be read.
    """
    row = files.read(f"{commits}/{result}.parquet")
    return catalog(files, commits).row(result) if row is None else row


def has_row(files: StoreFiles, commits: str, result: str) -> bool:
    """Whether a result is committed.

    Raises:
        StoreError: the store cannot be read.
    """
    return files.is_file(f"{commits}/{result}.parquet") or result in catalog(files, commits).group_of


def row_digest(files: StoreFiles, commits: str, result: str) -> str | None:
    """Return the SHA-256 of the file that holds, or held before it was compacted, the row of a result; None if there is none.

    Raises:
        StoreError: the store cannot be read.
    """
    content = files.read_bytes(f"{commits}/{result}.parquet")
    return catalog(files, commits).row_sha256.get(result) if content is None else hashlib.sha256(content).hexdigest()


def rows_of(files: StoreFiles, commits: str) -> pa.Table:
    """Return the rows of all committed results that can be read, sorted by id; `commits` may also be `experiments`.

    Raises:
        StoreError: the store cannot be read.
    """

    def read(name: str) -> pa.Table | None:
        try:
            row = files.read(f"{commits}/{name}.parquet")
            return None if row is None else complete(commits, row)
        except (StoreError, pa.ArrowException, ValueError, TypeError):
            return None  # `verify` tells what is wrong with it

    own = names_of(files, commits)
    found = catalog(files, commits)
    grouped = [found.row(result) for result in sorted({*found.group_of} - {*own})]
    with ThreadPoolExecutor(1 if files.local else _READERS) as pool:
        rows = [*pool.map(read, own), *grouped]
    together = pa.concat_tables([no_rows(commits), *(row for row in rows if row is not None)])
    return together.sort_by(together.column_names[0])


def results(files: StoreFiles, commits: str) -> list[str]:
    """Return the sorted ids of all committed results.

    Raises:
        StoreError: the store cannot be read.
    """
    own = names_of(files, commits)
    return sorted({*own, *catalog(files, commits).group_of})


def names_of(files: StoreFiles, table: str) -> list[str]:
    """Return the sorted names of the files of a table that each hold one result."""
    return [name for name in files.names(table) if name != NOTICE and not is_group(name)]


def write_notices(files: StoreFiles) -> None:
    """Write the files at which earlier versions of rmtscan stop.

    rmtscan 0.1 reads every file of `scans`, and this is no Parquet file. Development versions of 0.2 leave such a file out of their
    answers, but accept no name like this in `controls`.

    Raises:
        StoreError: the store cannot be written.
    """
    text = "Results of this store are in groups, which rmtscan 0.2 and later versions read. See docs/stores.md.\n"
    if not files.is_file(f"scans/{NOTICE}.parquet"):
        files.write_bytes(f"scans/{NOTICE}.parquet", text.encode())
    if not files.is_file(f"controls/{NOTICE}.parquet"):
        rows = described("controls", no_rows("controls"))
        files.write(f"controls/{NOTICE}.parquet", rows, file_metadata({}, schema_version=str(GROUPED_SCHEMA_VERSION)))
