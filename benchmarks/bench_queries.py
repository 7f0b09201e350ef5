"""Every named query on a store of 50 scans of a 7B-shaped model (46 million singular triplets): one model, and the whole fleet.

Also: the time a new process needs to open such a store, and whether EXPLAIN shows that files are read in part.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import measure

import fleet  # isort: skip
import duckdb

from scanner import open_store
from scanner.store import Store
from scanner.store.queries import Query

NAME = "queries"
ONE_MODEL, WHOLE_FLEET = 0.5, 5.0
"""Seconds allowed for a query about one model or pair of models, and for one across the fleet."""
LOOKED_AT = (
    "small_end",
    "role_table",
    "pvalues_by_role",
    "spectrum_by_role",
    "pair_shift",
    "pair_ranks",
    "pair_by_decile",
)
"""Queries over the two large tables whose reads are counted."""


def parameters(query: Query, of: fleet.Fleet) -> dict[str, object]:
    """Return the parameters that restrict the query to a model or a pair."""
    models = [model for model, _ in of.models]
    wanted: dict[str, object] = {"model": models[1], "base": models[0], "tuned": models[1], "a": models[0]}
    wanted |= {"b": models[1]}
    return {param.name: wanted[param.name] for param in query.params if param.name in wanted}


def times(store: Store, of: fleet.Fleet, repeats: int, *, judged: bool) -> list[measure.Row]:
    """Return the median seconds of every query on an open store; `cpu_s` sums all threads and depends less on other programs."""
    rows: list[measure.Row] = []
    for query in store.queries():
        contestants = {"one model": (parameters(query, of), ONE_MODEL), "fleet": ({}, WHOLE_FLEET)}
        for about, (params, bound) in contestants.items():
            if about == "one model" and not params:
                continue
            answer = store.query(query.name, **params)  # from here on, files are in the disk cache
            taken, busy = [], []
            for _ in range(repeats):
                before = time.process_time()
                taken.append(measure.seconds(partial(store.query, query.name, **params)))
                busy.append(time.process_time() - before)
            row: measure.Row = {"query": query.name, "about": about, "rows": answer.num_rows}
            row |= {"median_s": measure.median(taken), "min_s": min(taken), "cpu_s": measure.median(busy)}
            rows.append(row | measure.at_most(measure.median(taken) / bound, 1.0 if judged else None))
    return rows


def opening(url: str, repeats: int, *, judged: bool) -> list[measure.Row]:
    """Return the time to the first answer: creating the views over all committed files, and the smallest query."""
    taken = []
    for _ in range(repeats):
        store = open_store(url)
        taken.append(measure.seconds(partial(store.query, "scans")))
        store.close()
    row: measure.Row = {"step": "open the store, first answer", "median_s": measure.median(taken), "min_s": min(taken)}
    return [row | measure.at_most(measure.median(taken) / ONE_MODEL, 1.0 if judged else None)]


def partial_reads(place: Path, of: fleet.Fleet, *, judged: bool) -> list[measure.Row]:
    """Return what a query about one model reads of a table that holds all models, according to EXPLAIN ANALYZE.

    There are two requirements. The selection of scans must reach READ_PARQUET as a condition (`pushed`), because then
    DuckDB skips row groups by their statistics. And the query must read less than the size of the model's own files,
    although it names the files of all models: row groups and columns must be skipped.
    """
    rows: list[measure.Row] = []
    for name in LOOKED_AT:
        store = open_store(str(place))  # a new one each time: DuckDB caches what it has read
        query = next(query for query in store.queries() if query.name == name)
        profile = explain(store, query, parameters(query, of))
        store.close()
        folder, key = ("pair_vectors", "pair_id") if name.startswith("pair_") else ("vectors", "scan_id")
        large = [scan for scan in scans_of(profile["operator"]) if f"/{folder}/" in scan["extra_info"]["Filename(s)"]]
        pushed = [key in str(scan["extra_info"].get("Dynamic Filters")) for scan in large]
        sizes = {path.stem: path.stat().st_size / 1e6 for path in (place / folder).glob("*.parquet")}
        largest = max(sizes, key=lambda stem: sizes[stem])
        own = sum(path.stat().st_size for path in place.glob(f"*/{largest}.parquet")) / 1e6
        read = profile["io"]["total_bytes_read"] / 1e6
        row: measure.Row = {"query": name, "pushed": "yes" if pushed and all(pushed) else "NO"}
        row |= {"table_MB": sum(sizes.values()), "own_files_MB": own, "read_MB": read}
        rows.append(row | measure.at_most(read / own, 1.0 if judged else None))
    return rows


def explain(store: Store, query: Query, params: dict[str, object]) -> dict[str, Any]:
    """Return DuckDB's profile of the query: operators and bytes read."""
    connection: duckdb.DuckDBPyConnection = store._database().connection
    [(_, profile)] = connection.execute(f"explain (analyze, format json) {query.sql}", query.bind(params)).fetchall()
    found: dict[str, Any] = json.loads(profile)
    return found


def scans_of(operators: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the operators that read Parquet files, at any depth."""
    for operator in operators:
        if "READ_PARQUET" in str(operator["extra_info"].get("Function")):
            yield operator
        yield from scans_of(operator.get("children", []))


@contextlib.contextmanager
def folder_for(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="rmtscan-bench-") as temporary:
        yield Path(temporary)


def main() -> int:
    parser = measure.options(NAME, __doc__, repeats=5)
    parser.add_argument("--small", dest="quick", action="store_true", help="the same as --quick")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="build the store (3 GB) there and leave it, or use the one that is there",
    )
    args = parser.parse_args()
    machine = measure.machine()
    repeats = 1 if args.quick else args.repeats
    of = fleet.SMALL if args.quick else fleet.WHOLE
    with folder_for(args.keep) as folder:
        place = folder / "store"
        if not (place / "scans").is_dir():
            print(f"building {of.scans} scans of {of.matrices} matrices", flush=True)
            print(f"built in {measure.seconds(lambda: fleet.build(place, of)):.0f} s", flush=True)
        opened = opening(str(place), repeats, judged=not args.quick)
        store = open_store(str(place))
        found = times(store, of, repeats, judged=not args.quick)
        parts = partial_reads(place, of, judged=not args.quick)
        size = sum(path.stat().st_size for path in place.rglob("*.parquet")) / 1e9
        vectors = store.sql("SELECT count(*) AS n FROM all_vectors")["n"][0].as_py()
        store.close()
    measure.table("Opening, seconds; asked: what one query about a model may take", opened)
    measure.table(
        f"{vectors} singular triplets in {of.scans} scans, {size:.2f} GB; seconds, median of {repeats}", found
    )
    measure.table("Partial reads: queries about one model; ratio: read / the model's own files", parts)
    content = {"quick": args.quick, "machine": machine, "vectors": vectors, "gigabytes": size}
    measure.write_json(args.json, content | {"opening": opened, "times": found, "partial_reads": parts})
    return int(any("NO" in (row["pushed"], row["met"]) for row in parts))


if __name__ == "__main__":
    sys.exit(main())
