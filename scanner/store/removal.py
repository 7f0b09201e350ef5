"""Removal of scans, comparisons and runs of experiments: what a request names, what becomes visible, and removing it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from scanner.errors import ScannerError
from scanner.store.changing import changing
from scanner.store.checksums import printable
from scanner.store.compaction import write_catalog
from scanner.store.files import StoreFiles
from scanner.store.groups import GROUPED, catalog, names_of, rows_of
from scanner.store.lease import Lease, lease
from scanner.store.store import Store
from scanner.store.tables import experiment_tables, tables_of
from scanner.store.verification import COMMITTING

#: Revisions that an error lists.
_MOST_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class Removed:
    """One result that a request names."""

    table: str
    """`scans`, `comparisons` or `experiments`."""
    result: str
    """Id of the scan, comparison or run."""
    model: str
    """The model; of a comparison both."""
    revision: str | None
    finished_at: datetime | None
    files: tuple[str, ...]
    """Files that are removed, without those of groups, from which the rows disappear with the next compaction."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What a request removes, and what follows."""

    removed: tuple[Removed, ...]
    consequences: tuple[str, ...]
    """What queries show instead, and what refers to the removed results; one sentence each."""


def plan_removal(store: Store, wanted: Sequence[str]) -> Removal:
    """Find what a request names.

    Args:
        store: the store.
        wanted: ids of scans, comparisons and runs, names of models, and `MODEL@REVISION` with the beginning of a revision.

    Raises:
        ScannerError: the store has no such result, or several revisions begin like this.
        StoreError: the store cannot be read.
    """
    files = StoreFiles(store.url)
    rows = {table: rows_of(files, table).to_pylist() for table in COMMITTING}
    chosen: dict[tuple[str, str], Removed] = {}
    for name in wanted:
        found = _named(name, rows)
        if not found:
            known = sorted({str(row["model"]) for row in rows["scans"]} | {str(r["scan_id"]) for r in rows["scans"]})
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {printable(near[0])!r}?" if near else ""
            raise ScannerError(
                f"store {store.url!r} has no model, scan, comparison or run {printable(name)!r}{hint} (rmtscan models lists them)"
            )
        for table, row in found:
            result = str(row[COMMITTING[table]])
            chosen[table, result] = Removed(
                table=table,
                result=result,
                model=_model(table, row),
                revision=row.get("revision"),
                finished_at=row["finished_at"],
                files=tuple(_files(files, table, result)),
            )
    return Removal(removed=tuple(chosen.values()), consequences=tuple(_consequences(rows, {*chosen})))


def remove(store: Store, planned: Removal) -> None:
    """Remove results. The row that commits a result goes first, then its other files.

    Of a group, the catalog is rewritten without the results; their rows disappear from the files with the next compaction.

    Raises:
        StoreError: another process changes the store, or it cannot be written.
    """
    files = StoreFiles(store.url)
    with lease(files, "maintenance", doing="cleaned") as held:
        for table in GROUPED:
            _remove_from_groups(files, table, {one.result for one in planned.removed if one.table == table}, held)
        for one in planned.removed:
            held.check()
            with changing(files, one.result):  # it may be committed again at this moment
                for path in _files(files, one.table, one.result):
                    files.remove(path)


def _remove_from_groups(files: StoreFiles, table: str, results: set[str], held: Lease) -> None:
    known = catalog(files, table)
    gone = results & {*known.group_of}
    if not gone:
        return
    kept = {result: name for result, name in known.group_of.items() if result not in gone}
    live = {*kept.values()}
    held.check()
    write_catalog(
        files,
        replace(
            known,
            rows=known.rows.filter(pc.is_in(known.rows[GROUPED[table]], value_set=_strings(kept))),
            group_of=kept,
            row_sha256={result: known.row_sha256[result] for result in kept},
            groups={
                name: replace(group, dead=tuple(sorted({*group.dead, *({*known.live(name)} & gone)})))
                for name, group in known.groups.items()
                if name in live
            },
        ),
        replaces=known,
    )


def _strings(values: Iterable[str]) -> pa.Array:
    return pa.array(sorted(values), pa.string())


def _named(name: str, rows: Mapping[str, list[dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    for table, column in COMMITTING.items():
        found = [(table, row) for row in rows[table] if row[column] == name]
        if found:
            return found
    found = [("scans", row) for row in rows["scans"] if row["model"] == name]
    if found or "@" not in name:
        return found
    model, _, revision = name.rpartition("@")
    of_model = [row for row in rows["scans"] if row["model"] == model and revision and row["revision"]]
    begun = sorted({str(row["revision"]) for row in of_model if str(row["revision"]).startswith(revision)})
    if len(begun) > 1 and revision not in begun:
        shown = ", ".join(map(printable, begun[:_MOST_NAMED])) + (", ..." if len(begun) > _MOST_NAMED else "")
        raise ScannerError(f"{printable(name)!r} is the beginning of {len(begun)} revisions: choose one of {shown}")
    chosen = {revision} if revision in begun else {*begun}
    return [("scans", row) for row in of_model if str(row["revision"]) in chosen]


def _model(table: str, row: Mapping[str, Any]) -> str:
    return f"{row['base_model']} and {row['tuned_model']}" if table == "comparisons" else str(row["model"])


def _files(files: StoreFiles, table: str, result: str) -> list[str]:
    """Return the existing files of a result, that of the row that commits it first."""
    paths = [f"{table}/{result}.parquet"]
    if table != "experiments":
        paths += [f"{part}/{result}.parquet" for part in tables_of(table)]
        paths = [path for path in paths if files.is_file(path)]
        if table == "scans":  # the random controls that were made from its matrices
            own = re.compile(rf"{re.escape(result)}-[0-9a-f]{{32}}-[a-z0-9_]+-\d+")
            paths += [
                f"matrix_controls/{name}.parquet" for name in names_of(files, "matrix_controls") if own.fullmatch(name)
            ]
        return paths
    for part in experiment_tables():
        if part != table:
            names = names_of(files, part)
            paths += [f"{part}/{name}.parquet" for name in names if name == result or name.startswith(f"{result}-")]
    return paths


def _consequences(rows: Mapping[str, list[dict[str, Any]]], gone: set[tuple[str, str]]) -> list[str]:
    found = []
    scans = rows["scans"]
    left = [row for row in scans if ("scans", row["scan_id"]) not in gone]
    for model in sorted({str(row["model"]) for row in scans if ("scans", row["scan_id"]) in gone}):
        shown = printable(model)
        removed = [row for row in scans if row["model"] == model and ("scans", row["scan_id"]) in gone]
        remaining = sorted((row for row in left if row["model"] == model), key=_age, reverse=True)
        if not remaining:
            found.append(f"{shown} has no scan any more")
            continue
        newest = max(scans, key=lambda row: (row["model"] == model, *_age(row)))
        if ("scans", newest["scan_id"]) in gone and remaining[0]["revision"] != newest["revision"]:
            found.append(f"queries of {shown} then show {_described(remaining[0])}, the newest that is left")
        for revision in sorted({row["revision"] for row in removed}, key=str):
            last = max((row for row in removed if row["revision"] == revision), key=_age)
            older = [row for row in remaining if row["revision"] == revision and _age(row) < _age(last)]
            found += [
                f"matrices of {shown} that the removed scan {last['scan_id']} has repeated are then shown from "
                f"{_described(row)}"
                for row in older
            ]
    for row in rows["comparisons"]:
        sides = {row["base_scan_id"], row["tuned_scan_id"], row["delta_scan_id"]}
        lost = sorted(one for one in sides if ("scans", one) in gone)
        if lost and ("comparisons", row["pair_id"]) not in gone:
            found.append(f"comparison {row['pair_id']} refers to the removed scan {lost[0]} and keeps its own rows")
    pairs = {(row["base_model"], row["tuned_model"]) for row in rows["comparisons"]}
    for base, tuned in sorted(pairs):
        same = [row for row in rows["comparisons"] if (row["base_model"], row["tuned_model"]) == (base, tuned)]
        rest = [row for row in same if ("comparisons", row["pair_id"]) not in gone]
        newest = max(same, key=_age)
        if rest and ("comparisons", newest["pair_id"]) in gone:
            then = max(rest, key=_age)
            found.append(
                f"queries of {printable(str(base))} and {printable(str(tuned))} then show comparison {then['pair_id']}, "
                f"finished {_time(then)}"
            )
    return found


def _age(row: Mapping[str, Any]) -> tuple[bool, datetime, str]:
    finished = row["finished_at"]
    return (
        finished is not None,
        finished or datetime.min.replace(tzinfo=UTC),
        str(row.get("scan_id") or row.get("pair_id")),
    )


def _described(row: Mapping[str, Any]) -> str:
    revision = printable(str(row["revision"] or ""))[:12] or "unknown"
    return f"scan {row['scan_id']} (revision {revision}, finished {_time(row)})"


def _time(row: Mapping[str, Any]) -> str:
    finished = row["finished_at"]
    return "at an unknown time" if finished is None else f"{finished:%Y-%m-%d %H:%M}"
