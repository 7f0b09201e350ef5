"""Verification: every committed file against the row that commits it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from scanner.errors import StoreError
from scanner.store.checksums import damage, has_checksum, is_safe_id, records_in
from scanner.store.tables import TABLES, complete, listed_tables, tables_of

if TYPE_CHECKING:
    from scanner.store.files import StoreFiles

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
        for name in files.names(table):
            for found in verify_result(files, table, name, deep=deep):
                recorded.add(found.file)
                yield found
    for table in listed_tables():
        if table in COMMITTING:
            continue
        for name in files.names(table):
            path = f"{table}/{name}.parquet"
            if path not in recorded:
                yield _verified(files, path, name, damage(files, path, None, deep=deep), None, _remedy(table))


def verify_result(files: StoreFiles, table: str, name: str, *, deep: bool = True) -> Iterator[Verified]:
    """Check the files of one scan, comparison or run; `table` is the table whose row commits it."""
    path, remedy = f"{table}/{name}.parquet", _remedy(table)
    problem = damage(files, path, None, deep=True)  # small
    row: dict[str, Any] = {}
    if problem is None:
        try:
            row = commit_row(files, table, name)
            records = records_in(row["files"])
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
    for found in verify_result(files, table, name, deep=deep):
        if found.state == "damaged":
            return f"{files.full(found.file)!r} {found.problem}"
    return None


def commit_row(files: StoreFiles, table: str, name: str) -> dict[str, Any]:
    """Return the row that commits a result.

    Raises:
        StoreError: there is none, it cannot be read, or it is that of another result.
    """
    if not is_safe_id(name):
        raise StoreError(f"{name!r} is not a name that rmtscan gives to a file")
    found = files.read(f"{table}/{name}.parquet")
    if found is None or found.num_rows != 1:
        raise StoreError(f"has {0 if found is None else found.num_rows} rows instead of 1")
    try:
        row: dict[str, Any] = complete(table, found).to_pylist()[0]
    except (ValueError, TypeError) as error:
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
    return (TABLES[table].listed_by or table,)


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


def _remedy(table: str) -> str:
    if table in {"controls", "matrix_controls"}:
        return "remove it and run the same scan again with `force`"
    verb = {"scans": "scan", "comparisons": "comparison"}.get(table, "experiment")
    return f"run the same {verb} again with `force`"


def _verified(files: StoreFiles, path: str, result: str, problem: str | None, record: object, remedy: str) -> Verified:
    if problem is not None:
        return Verified(file=path, result=result, state="damaged", problem=problem, remedy=remedy)
    sure = record is not None or has_checksum(files, path)
    note = "" if sure else "no checksum: written by an earlier version"
    return Verified(file=path, result=result, state="whole" if sure else "readable", problem=note)
