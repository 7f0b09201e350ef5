"""`rmtscan compact`: merge the files of many scans into groups."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from scanner.cli import options
from scanner.cli.answers import TableOptions, printer
from scanner.cli.output import DEFAULT_STORE, StoreOption, note
from scanner.cli.progress import steps


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "compact", compact)


def compact(
    named: Annotated[
        str | None, typer.Argument(metavar="STORE", help="The same as --store STORE.", show_default=False)
    ] = None,
    *,
    store: StoreOption = DEFAULT_STORE,
    older_than: Annotated[
        float, typer.Option("--older-than", metavar="HOURS", min=0, help="Leave out what finished later than this.")
    ] = 0.0,
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            metavar="HOURS",
            min=0,
            help="How long replaced files stay for programs that are reading them. A later compaction removes them.",
        ),
    ] = 1.0,
    group_bytes: Annotated[
        int,
        typer.Option(
            "--group-bytes", metavar="BYTES", min=1, help="Largest size of a group, unless one scan is larger."
        ),
    ] = 1 << 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")] = False,
    table: TableOptions,
) -> None:
    """Merge the files of many scans and comparisons into groups, so that a large store opens fast, above all on an object store.

    Every query gives the same rows before, during and after. Scans that are running and damaged ones keep their files; controls
    and experiments are not compacted. Versions of rmtscan before 0.2 refuse a compacted store.

    Examples:

        rmtscan compact results --dry-run

        rmtscan compact s3://bucket/results --older-than 24
    """
    numbers = ("results", "groups", "merged", "files", "files_written", "bytes", "bytes_written")
    show = printer(table, columns=("table", *numbers))

    from datetime import timedelta

    import pyarrow as pa

    from scanner.checkpoint.names import printable
    from scanner.store import open_store
    from scanner.store.compaction import compact as compact_store

    with steps(sys.stderr, "compacting") as progress:
        opened = open_store(named or store)
        done = compact_store(
            opened,
            older_than=timedelta(hours=older_than),
            grace=timedelta(hours=grace),
            group_bytes=group_bytes,
            dry_run=dry_run,
            progress=progress,
        )
    columns = {"table": pa.string()} | dict.fromkeys(numbers, pa.int64())
    show(pa.table({name: [getattr(one, name) for one in done] for name in columns}, schema=pa.schema(columns)))
    for one in done:
        for result, why in one.left:
            note(f"{one.table} {printable(result)} keeps its files: {printable(why)}")
    removed, waiting = sum(one.removed for one in done), sum(one.waiting for one in done)
    if dry_run:
        note(f"nothing was changed; obsolete files: {removed}")
        return
    if removed:
        note(f"obsolete files removed: {removed}")
    if waiting:
        note(f"replaced files that stay for {grace:g} h: {waiting}; a later rmtscan compact removes them")
