"""`rmtscan merge`: copy the results of stores into another store."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from scanner.cli import options
from scanner.cli.answers import TableOptions, printer
from scanner.cli.output import note
from scanner.cli.progress import waiting


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "merge", merge)


def merge(
    *,
    source: Annotated[
        list[str], typer.Argument(metavar="FROM...", help="Stores that are read: folders or URLs.", show_default=False)
    ],
    into: Annotated[
        str,
        typer.Option(
            "--into", metavar="STORE", help="The store that is written; created if there is none.", show_default=False
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be copied.")] = False,
    table: TableOptions,
) -> None:
    """Copy scans, comparisons, experiments and controls of stores into another one that does not have them.

    Every file is compared with its checksum on the way. What the store has already is kept, unless it is damaged. Merging again
    copies nothing. If something is damaged in the source, it is left out and listed, and the exit status is 3.

    Examples:

        rmtscan merge laptop-results s3://bucket/results --into all-results
    """
    states = ("copied", "kept", "replaced", "damaged", "busy")
    show = printer(table, columns=("source", "table", *states))

    import pyarrow as pa

    from scanner.store import open_store
    from scanner.store.merging import Merged
    from scanner.store.merging import merge as merge_stores

    with waiting(sys.stderr, "opening the stores"):
        sources = [open_store(one) for one in source]
        target = open_store(into, create=not dry_run)
    done: list[Merged] = []
    for one in sources:
        with waiting(sys.stderr, f"copying from {one.url}"):
            done += merge_stores(one, target, dry_run=dry_run)
    kinds = sorted({(entry.source, entry.table) for entry in done})
    counts = {
        state: [sum((e.source, e.table, e.state) == (*kind, state) for e in done) for kind in kinds] for state in states
    }
    columns = {"source": [kind[0] for kind in kinds], "table": [kind[1] for kind in kinds], **counts}
    schema = pa.schema({"source": pa.string(), "table": pa.string(), **dict.fromkeys(states, pa.int64())})
    show(pa.table(columns, schema=schema))
    for entry in done:
        if entry.problem:
            note(f"{entry.table} {entry.result} was not copied: {entry.problem}")
    if any(entry.state in ("damaged", "busy") for entry in done):
        raise typer.Exit(3)
