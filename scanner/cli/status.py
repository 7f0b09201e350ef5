"""`rmtscan status`: what is scanned, running, unfinished or failed."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from scanner.cli import options
from scanner.cli.answers import AnswerOptions, chosen_view, named, printer
from scanner.cli.output import DEFAULT_STORE, StoreOption, line_width, note, write
from scanner.cli.progress import waiting
from scanner.cli.tables import View, draw, duration

if TYPE_CHECKING:
    import pyarrow as pa

    from scanner.store import Heartbeat, Store

#: Columns of the table of scans, of that of running work, and what a terminal shows of the latter.
_SCANS = ("model", "scan_id", "state", "matrices", "failed")
_RUNNING = tuple(
    "running models done total percent per_minute seconds_left remaining failed workers since updated state host pid".split()
)
_SHOWN = ("running", "models", "done", "total", "percent", "per_minute", "remaining", "failed", "state", "host")
#: Seconds between two looks of --watch: heartbeats are five seconds apart, on a network twenty.
_LOOK_SECONDS = 2.0
#: Rows of scans that --watch shows, so that running work stays on the screen.
_WATCHED = 10
#: Share of the cost from which on the rate says how long the rest takes.
_LEAST_SHARE = 0.01


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "status", status)


def status(
    *,
    store: StoreOption = DEFAULT_STORE,
    running: Annotated[bool, typer.Option("--running", help="List only running work, in any format.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show running work again and again until nothing runs, or Ctrl-C.")
    ] = False,
    table: AnswerOptions,
) -> None:
    """Show what is scanned, running, unfinished or failed.

    Scans come first; running work of any process and machine follows in a second table, which the formats json, csv and parquet
    print with --running: finished and all items, matrices and controls of a scan, items per minute, and the time that is left,
    from the cost of the items. `rmtscan query experiments` lists the runs of experiments.

    Examples:

        rmtscan status --store results

        rmtscan status --watch --store s3://bucket/results
    """
    from scanner.store import open_store

    if watch and (table.form != "table" or table.output is not None):
        raise typer.BadParameter("--watch needs format table; a script can repeat --running", param_hint="--watch")
    if running or watch:
        show = printer(table, _view(), columns=_RUNNING)
    else:
        show = printer(table, View(caption=False, totals=("matrices", "failed")), columns=_SCANS)
    with waiting(sys.stderr, "reading the store"):
        opened = open_store(store)
    if watch:
        _watch(opened, table)
        return
    if running:
        work = _running(opened)
        show(work)
        if not work.num_rows:
            note(f"nothing is running in {opened.url}")
        return
    with waiting(sys.stderr, "reading the store"):
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
    show(scans)
    if work.num_rows and table.form == "table" and table.output is None:
        print()
        write(work, "table", view=_view(), whole=table.wide)
    elif work.num_rows:
        note(f"running: {work.num_rows} (rmtscan status --running --store {store})")


def _view() -> View:
    """Return what the table of running work shows."""
    return View(shown=named(_SHOWN), caption=False)


def _watch(store: Store, table: AnswerOptions) -> None:
    """Print the running work until there is none: in the same place on a terminal, elsewhere one table after the other."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    view = chosen_view(table, _view(), _RUNNING)
    rows = None if table.all_rows else table.rows or _WATCHED

    def screen() -> tuple[str, bool]:
        work = _running(store)
        if not work.num_rows:
            return "", False
        drawn = draw(work, width=None if table.wide else line_width(), view=view, rows=rows)
        more = f"... {work.num_rows - rows} more\n" if rows is not None and work.num_rows > rows else ""
        at = datetime.now(UTC).strftime("%H:%M:%S UTC")
        return "\n".join([*drawn.lines, f"{more}{at}, {store.url}"]), any(
            state == "running" for state in work["state"].to_pylist()
        )

    text, busy = screen()
    if not busy:
        sys.stdout.write(text and f"{text}\n")
        note("nothing is running")
        return
    if not sys.stdout.isatty():
        while busy:
            print(text, flush=True)
            time.sleep(_LOOK_SECONDS)
            text, busy = screen()
    else:
        with Live(Text(text), console=Console(highlight=False), auto_refresh=False) as live:
            while busy:
                live.update(Text(text), refresh=True)
                time.sleep(_LOOK_SECONDS)
                text, busy = screen()
    sys.stdout.write(text and f"{text}\n")
    note("nothing is running any more")


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
    kinds = dict.fromkeys(("matrices", "failed"), pa.int32())
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in _SCANS])
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
            "per_minute": _rate(run),
            "seconds_left": seconds,
            "remaining": None if seconds is None else duration(seconds),
            "failed": run.failed,
            "workers": run.workers,
            "since": run.started_at,
            "updated": run.updated_at,
            "state": "stalled" if run.stalled else "running",
            "host": run.host,
            "pid": run.pid,
        }
        for run in store.running()
        for seconds in [_seconds_left(run)]
    ]
    kinds = dict.fromkeys(("done", "total", "failed", "workers", "pid"), pa.int64())
    kinds |= dict.fromkeys(("percent", "per_minute", "seconds_left"), pa.float64())
    kinds |= dict.fromkeys(("since", "updated"), pa.timestamp("us", tz="UTC"))
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in _RUNNING])
    return pa.Table.from_pylist(rows, schema=schema)


def _lasted(run: Heartbeat) -> float:
    """Return the seconds from the start of a run to its last heartbeat."""
    return (run.updated_at - run.started_at) / timedelta(seconds=1)


def _rate(run: Heartbeat) -> float | None:
    """Return the finished items per minute; None before the first."""
    seconds = _lasted(run)
    return 60.0 * run.done / seconds if run.done and seconds > 0 else None


def _seconds_left(run: Heartbeat) -> float | None:
    """Return how long the rest of a run takes if its cost is done as fast as before; None if that is not known, or it stalls."""
    seconds = _lasted(run)
    if run.stalled or seconds <= 0 or run.cost_done <= 0 or run.cost_done < _LEAST_SHARE * run.cost:
        return None
    return max(0.0, seconds * (run.cost - run.cost_done) / run.cost_done)
