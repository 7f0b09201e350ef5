"""`rmtscan verify`: check that every committed file of a store is there and whole."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from scanner.cli import options
from scanner.cli.answers import AnswerOptions, printer
from scanner.cli.output import DEFAULT_STORE, StoreOption, note
from scanner.cli.progress import waiting
from scanner.cli.tables import View


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "verify", verify, without=("all_rows",))


def verify(
    named: Annotated[
        str | None, typer.Argument(metavar="STORE", help="The same as --store STORE.", show_default=False)
    ] = None,
    *,
    store: StoreOption = DEFAULT_STORE,
    everything: Annotated[bool, typer.Option("--all", help="List whole files, too.")] = False,
    table: AnswerOptions,
) -> None:
    """Check that every committed file of a store is there, has its rows, and has not changed since it was written.

    Files that are missing or damaged are listed, each with what is wrong and what to do; then the exit status is 3.
    Stores of earlier versions have no checksums: their rows are counted, and everything is read.

    Examples:

        rmtscan verify results

        rmtscan verify s3://bucket/results --format json
    """
    names = ("file", "result", "state", "problem", "remedy")
    # --all has another meaning here, and without --rows all files are shown.
    show = printer(table, View(), columns=names, rows=None, more="a larger --rows prints them")

    import pyarrow as pa

    from scanner.store import open_store

    with waiting(sys.stderr, f"checking the files of {named or store}"):
        opened = open_store(named or store)
        checked = opened.verify()
    damaged = [found for found in checked if found.state == "damaged"]
    unsure = sum(found.state == "readable" for found in checked)
    listed = checked if everything else damaged
    rows = {name: [getattr(found, name).replace("`force`", "--force") for found in listed] for name in names}
    if listed or table.form != "table" or table.output is not None:
        show(pa.table(rows, schema=pa.schema([(name, pa.string()) for name in names])))
    note(f"{len(checked)} files: {len(checked) - len(damaged)} whole, {len(damaged)} missing or damaged")
    if unsure:
        note(
            f"{unsure} of them have no checksum, because an earlier version wrote them: rows and readability were checked"
        )
    if damaged:
        raise typer.Exit(3)
