"""`rmtscan status`: what is scanned, running, unfinished or failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from scanner.cli import options
from scanner.cli.output import DEFAULT_STORE, FormatOption, StoreOption, note, write

if TYPE_CHECKING:
    import pyarrow as pa

    from scanner.store import Store


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "status", status)


def status(
    store: StoreOption = DEFAULT_STORE,
    running: Annotated[bool, typer.Option("--running", help="List only running work, in any format.")] = False,
    form: FormatOption = "table",
) -> None:
    """Show what is scanned, running, unfinished or failed.

    Scans come first; running work of any process and machine follows in a second table, which the formats json, csv and parquet
    print with --running. `rmtscan query experiments` lists the runs of experiments.
    """
    from scanner.store import open_store

    opened = open_store(store)
    if running:
        write(_running(opened), form)
        return
    scans, work = _scans(opened), _running(opened)
    runs = opened.query("experiments").num_rows
    if runs:
        note(f"runs of experiments: {runs} (rmtscan query experiments --store {store})")
    earlier = _earlier(opened)
    if earlier:
        note(
            f"{earlier} scan{'s' if earlier != 1 else ''} of an earlier method (rmtscan scan --upgrade --store {store} scans again)"
        )
    if not scans.num_rows:
        note(f"nothing has been scanned into {opened.url}; start with: rmtscan scan REF --store {store}")
    write(scans, form)
    if work.num_rows and form == "table":
        print()
        write(work, form)
    elif work.num_rows:
        note(f"running: {work.num_rows} (rmtscan status --running --store {store})")


def _scans(store: Store) -> pa.Table:
    """Return one row per finished and unfinished scan."""
    import pyarrow as pa

    rows = [
        {name: row[name] for name in ("model", "scan_id", "matrices", "failed")} | {"state": "scanned"}
        for row in store.query("scans").to_pylist()
    ]
    rows += [
        {
            "model": scan.model,
            "scan_id": scan.scan_id,
            "state": "unfinished",
            "matrices": scan.parts,
            "failed": scan.failures,
        }
        for scan in store.unfinished()
    ]
    schema = pa.schema(
        {
            "model": pa.string(),
            "scan_id": pa.string(),
            "state": pa.string(),
            "matrices": pa.int32(),
            "failed": pa.int32(),
        }
    )
    return pa.Table.from_pylist(rows, schema=schema)


def _earlier(store: Store) -> int:
    """Return the number of scans of an earlier method that were not computed again."""
    from scanner.fleet.earlier import earlier_methods

    return len(earlier_methods(store))


def _running(store: Store) -> pa.Table:
    """Return one row per run that is in progress; `percent` is the finished share of its cost."""
    import pyarrow as pa

    rows = [
        {
            "running": run.kind,
            "models": ", ".join(run.what),
            "done": run.done,
            "total": run.total,
            "percent": 100.0 * run.cost_done / run.cost if run.cost else None,
            "failed": run.failed,
            "workers": run.workers,
            "since": run.started_at,
            "updated": run.updated_at,
            "state": "stalled" if run.stalled else "running",
            "host": run.host,
            "pid": run.pid,
        }
        for run in store.running()
    ]
    time = pa.timestamp("us", tz="UTC")
    schema = pa.schema(
        {
            "running": pa.string(),
            "models": pa.string(),
            "done": pa.int64(),
            "total": pa.int64(),
            "percent": pa.float64(),
            "failed": pa.int64(),
            "workers": pa.int64(),
            "since": time,
            "updated": time,
            "state": pa.string(),
            "host": pa.string(),
            "pid": pa.int64(),
        }
    )
    return pa.Table.from_pylist(rows, schema=schema)
