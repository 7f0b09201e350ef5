"""`rmtscan models`: list the scanned models."""

from __future__ import annotations

import sys

import typer

from scanner.cli import options
from scanner.cli.answers import AnswerOptions, printer
from scanner.cli.output import DEFAULT_STORE, StoreOption, note
from scanner.cli.progress import waiting
from scanner.cli.tables import view_of


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "models", models)


def models(*, store: StoreOption = DEFAULT_STORE, table: AnswerOptions) -> None:
    """List the models that have been scanned; --wide shows every column.

    Examples:

        rmtscan models --store results

        rmtscan models --columns model,architecture,bytes -o models.xlsx
    """
    from scanner.store import open_store
    from scanner.store.queries import find_query

    query = find_query("scans")
    show = printer(table, view_of(query), columns=[column.name for column in query.columns])
    with waiting(sys.stderr, "reading the store"):
        opened = open_store(store)
        answer = opened.query("scans")
    show(answer)
    if not answer.num_rows:
        note(
            f"no finished scan in {opened.url}: `rmtscan scan REF --store {store}` makes one, `rmtscan status` shows the others"
        )
