"""Verification: every committed file against the row that commits it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from scanner.errors import StoreError
from scanner.store.checksums import is_safe_id, printable, records_in
from scanner.store.damage import damage, has_checksum
from scanner.store.groups import (
    FOLDER,
    GROUPED,
    Catalog,
    catalog,
    names_of,
    read_result,
    row_of,
)
from scanner.store.tables import TABLES, complete, listed_tables, tables_of

if TYPE_CHECKING:
    from scanner.store.files import StoreFiles

#: Number of models that are named where many are concerned.
_NAMED = 20

State = Literal["whole", "readable", "damaged"]
"""`readable`: rows agree and everything can be read, but an earlier version of rmtscan stored no checksum."""

COMMITTING = {"scans": "scan_id", "comparisons": "pair_id", "experiments": "run_id"}


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found of one committed file."""

    file: str
    """Path in the store."""
    result: str
    """The scan, comparison or run that it belongs to; its own name, if it belongs to several."""
    results: tuple[str, ...]
    """The scans, comparisons or runs that it belongs to."""
    state: State
    problem: str = ""
    remedy: str = ""


def verify(files: StoreFiles, *, deep: bool = True) -> Iterator[Verified]:
    """Check every committed file of a store: it is there, has its rows, and its checksum.

    Args:
        files: the store.
        deep: False: only sizes and footers are compared, which is fast.

    Raises:
        StoreError: the store cannot be read.
    """
    recorded: set[str] = set()
    for table in COMMITTING:
        own = names_of(files, table)
        for name in own:
            for found in verify_result(files, table, name, deep=deep):
                recorded.add(found.file)
                yield found
        if table in GROUPED:
            yield from _verify_groups(files, table, {*own}, deep=deep)
    for table in listed_tables():
        if table in COMMITTING:
            continue
        for name in names_of(files, table):
            path = f"{table}/{name}.parquet"
            if path not in recorded:
                yield _verified(files, path, name, damage(files, path, None, deep=deep), None, _remedy(table))


def _verify_groups(files: StoreFiles, table: str, own: set[str], *, deep: bool) -> Iterator[Verified]:
    """Check the catalogs of a table, and the files of the groups from which results are read."""
    try:
        found = catalog(files, table)
    except StoreError as error:
        names = [name for name in files.names(FOLDER) if name.startswith(f"{table}-")]
        for name in names:
            yield Verified(
                file=f"{FOLDER}/{name}.parquet",
                result=name,
                results=(),
                state="damaged",
                problem=f"or another catalog is damaged: {error}",
                remedy="restore it from a copy, or scan again",
            )
        return
    for name in found.files:
        yield Verified(file=f"{FOLDER}/{name}.parquet", result=name, results=(), state="whole")
    for group in found.groups.values():
        results = tuple(result for result in found.live(group.name) if result not in own)
        for path, record in group.records.items() if results else ():
            problem = damage(files, path, record, deep=deep)
            yield Verified(
                file=path,
                result=group.name,
                results=results,
                state="whole" if problem is None else "damaged",
                problem=problem or "",
                remedy="" if problem is None else f"{_remedy(table, several=True)}: {_models(found, results)}",
            )


def _models(found: Catalog, results: Sequence[str]) -> str:
    """Name the models of grouped results, as many as fit into a line."""
    columns = ("model",) if found.commits == "scans" else ("base_model", "tuned_model")
    rows = [row for result in results[:_NAMED] if (row := found.row(result)) is not None]
    names = [" and ".join(printable(str(row[column][0].as_py())) for column in columns) for row in rows]
    rest = len(results) - len(names)
    return ", ".join(dict.fromkeys(names)) + (f" and {rest} more" if rest else "")


def verify_result(files: StoreFiles, table: str, name: str, *, deep: bool = True) -> Iterator[Verified]:
    """Check the files of one scan, comparison or run; `table` is the table whose row commits it."""
    path, remedy = f"{table}/{name}.parquet", _remedy(table)
    problem = damage(files, path, None, deep=True)  # small
    row: dict[str, Any] = {}
    if problem is None:
        try:
            row = commit_row(files, table, name)
            records = records_in(row["files"])
            if records is not None and not has_checksum(files, path):  # whoever writes records writes checksums, too
                problem = "has lost its checksum"
        except (StoreError, ValueError) as error:
            problem = str(error)
    yield _verified(files, path, name, problem, None, remedy)
    if problem is not None:
        return
    for part, rows in _expected(table, name, row, records):
        record = (records or {}).get(part)
        found = damage(files, part, record, rows=rows, deep=deep)
        yield _verified(files, part, name, found, record, remedy)


def problem_of(files: StoreFiles, table: str, name: str, *, deep: bool = True) -> str | None:
    """Return what is wrong with a committed result, in one line that names the file; None if it is whole."""
    if table in GROUPED and not files.is_file(f"{table}/{name}.parquet"):
        return _problem_in_group(files, table, name, deep=deep)
    for found in verify_result(files, table, name, deep=deep):
        if found.state == "damaged":
            return f"{files.full(found.file)!r} {found.problem}"
    return None


def _problem_in_group(files: StoreFiles, table: str, name: str, *, deep: bool) -> str | None:
    """The same of a grouped result: its rows are read, and of the rest of the files only sizes and footers."""
    found = catalog(files, table)
    if name not in found.group_of:
        return f"{files.full(f'{table}/{name}.parquet')!r} is missing"
    try:
        row = commit_row(files, table, name)
    except StoreError as error:
        return f"the row of {name} in a catalog of {files.full(FOLDER)!r} {error}"
    group = found.groups[found.group_of[name]]
    for part in tables_of(table):
        path = group.path(part)
        counted = TABLES[part].counted_by
        wanted = row[counted] if counted else (row["matrices"] if part == "pairs" else None)
        if path is None:
            if wanted:
                return f"{files.full(f'{part}/{group.name}.parquet')!r} is missing in its catalog"
            continue
        problem = damage(files, path, group.records[path], deep=False)
        if problem is None and deep:
            try:
                rows = sum(some.num_rows for some in read_result(files, part, name))
            except StoreError as error:
                return str(error)
            if wanted is not None and rows != wanted:
                problem = f"has {rows} rows of {name} instead of {wanted}"
        if problem is not None:
            return f"{files.full(path)!r} {problem}"
    return None


def commit_row(files: StoreFiles, table: str, name: str) -> dict[str, Any]:
    """Return the row that commits a result.

    Raises:
        StoreError: there is none, it cannot be read, or it is that of another result.
    """
    if not is_safe_id(name):
        raise StoreError(f"{name!r} is not a name that rmtscan gives to a file")
    found = row_of(files, table, name)
    if found is None or found.num_rows != 1:
        raise StoreError(f"has {0 if found is None else found.num_rows} rows instead of 1")
    try:
        row: dict[str, Any] = complete(table, found).to_pylist()[0]
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise StoreError(f"has columns of other types ({str(error).splitlines()[0][:200]})") from error
    if row[COMMITTING[table]] != name:
        raise StoreError(f"is the row of another {COMMITTING[table].removesuffix('_id')}")
    lacking = [column.name for column in TABLES[table].columns if column.required and row[column.name] is None]
    if lacking:
        raise StoreError(f"has no {lacking[0]}")
    return row


def tables_around(path: str) -> tuple[str, ...]:
    """Return the tables in which the results of a file are listed: its own, or that of the row that commits it."""
    table = path.partition("/")[0]
    return (TABLES[table].listed_by or table,) if table in TABLES else ()


def _expected(
    table: str, name: str, row: dict[str, Any], records: dict[str, Any] | None
) -> Iterator[tuple[str, int | None]]:
    """Yield the files that a row commits, with their rows if the row tells them."""
    known: dict[str, int | None] = {}
    for part in tables_of(table):
        counted = TABLES[part].counted_by
        rows = row[counted] if counted else (row["matrices"] if part == "pairs" else None)
        if rows or not counted:
            known[f"{part}/{name}.parquet"] = rows
    for path in records or {}:
        # A row may only speak of its own files: a foreign one could name those of another result.
        if path.partition("/")[2].startswith(name):
            known.setdefault(path, None)
    yield from known.items()


def _remedy(table: str, *, several: bool = False) -> str:
    if table in {"controls", "matrix_controls"}:
        return "remove it and run the same scan again with `force`"
    verb = {"scans": "scan", "comparisons": "comparison"}.get(table, "experiment")
    return f"run the same {verb}{'s' if several else ''} again with `force`"


def _verified(files: StoreFiles, path: str, result: str, problem: str | None, record: object, remedy: str) -> Verified:
    if problem is not None:
        return Verified(file=path, result=result, results=(result,), state="damaged", problem=problem, remedy=remedy)
    sure = record is not None or has_checksum(files, path)
    note = "" if sure else "no checksum: written by an earlier version"
    return Verified(file=path, result=result, results=(result,), state="whole" if sure else "readable", problem=note)
