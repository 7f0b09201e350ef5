"""Opening a store of many tiny scans and asking it, local and on S3, before and after `compact`: seconds and requests.

S3 is moto's server on loopback, behind a proxy that counts requests. `--delay` adds seconds to each of them, as a network does.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import fsspec
import measure

from scanner.store import Store, open_store
from scanner.store.compaction import compact
from tests.store.rows import Matrix, add_scan
from tests.store.s3 import environment, serving

MOST_REQUESTS = 50
QUESTIONS: dict[str, Callable[[Store], object]] = {
    "open": lambda store: store.query("scans"),
    "one model": lambda store: store.query("layer_trend", model="org/m7"),
    "fleet": lambda store: store.query("fleet_overview"),
}


def fill(url: str, scans: int) -> Store:
    store = open_store(url, create=True)
    for index in range(scans):
        matrices = [Matrix(tensor=f"t{layer}", layer=layer) for layer in range(2)]
        add_scan(store, f"s{index:05}", matrices, model=f"org/m{index}", hours=index / 100)
    return store


def measured(url: str, count: Callable[[], int]) -> dict[str, tuple[float, int]]:
    found = {}
    for name, ask in QUESTIONS.items():
        before, start = count(), time.perf_counter()
        store = open_store(url)
        ask(store)
        found[name] = (time.perf_counter() - start, count() - before)
        store.close()
    return found


def compared(
    where: str, before: dict[str, tuple[float, int]], after: dict[str, tuple[float, int]]
) -> list[measure.Row]:
    rows: list[measure.Row] = []
    for name, (seconds, requests) in before.items():
        then, fewer = after[name]
        row: measure.Row = {
            "store": where,
            "question": name,
            "before_s": seconds,
            "after_s": then,
            "ratio": seconds / then,
        }
        row |= {"requests": requests, "requests_after": fewer}
        limited = name == "open" and where == "s3"
        rows.append(row | {"asked": f"<= {MOST_REQUESTS}" if limited else "", "met": _met(limited, fewer)})
    return rows


def _met(limited: bool, requests: int) -> str:
    return ("yes" if requests <= MOST_REQUESTS else "NO") if limited else ""


def main() -> int:
    parser = measure.options("store", __doc__.splitlines()[0], repeats=1)
    parser.add_argument("--scans", type=measure.count, help="number of scans (default: 5000, with --quick 200)")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that every request to S3 takes longer")
    args = parser.parse_args()
    machine = measure.machine()
    scans = args.scans or (200 if args.quick else 5000)
    folder = Path(tempfile.mkdtemp(prefix="rmtscan-bench-"))
    rows: list[measure.Row] = []
    try:
        local, remote = str(folder / "store"), "s3://benchmark/results"
        print(f"{scans} scans written in {measure.seconds(lambda: fill(local, scans)):.1f} s", flush=True)
        with serving() as proxy:
            os.environ.update(environment(proxy.url))
            s3 = fsspec.filesystem("s3")
            s3.mkdir("benchmark")
            for path in Path(local).rglob("*.parquet"):
                s3.put_file(str(path), f"benchmark/results/{path.relative_to(local)}")
            if args.delay:
                proxy.fault = lambda request: time.sleep(args.delay)
            for where, url in (("local", local), ("s3", remote)):
                before = measured(url, lambda: len(proxy.requests))
                took = measure.seconds(lambda url=url: compact(open_store(url), grace=timedelta(0)))  # type: ignore[misc]
                print(f"{where}: compacted in {took:.1f} s", flush=True)
                rows += compared(where, before, measured(url, lambda: len(proxy.requests)))
        measure.table(f"{scans} scans, before and after compact", rows)
        measure.write_json(args.json, {"quick": args.quick, "machine": machine, "scans": scans, "times": rows})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return int(any(row["met"] == "NO" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
