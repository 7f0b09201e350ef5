"""`rmtscan models`: list the scanned models."""

from __future__ import annotations

import typer

from scanner.cli import options
from scanner.cli.output import DEFAULT_STORE, FormatOption, StoreOption, write
from scanner.cli.tables import view_of


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "models", models)


def models(store: StoreOption = DEFAULT_STORE, form: FormatOption = "table") -> None:
    """List the models that have been scanned; `rmtscan query scans --wide` has every column."""
    from scanner.store import open_store
    from scanner.store.queries import find_query

    write(open_store(store).query("scans"), form, view=view_of(find_query("scans")), more="--format csv prints all")
