"""`rmtscan models`: list the scanned models."""

from __future__ import annotations

import typer

from scanner.cli import options
from scanner.cli.output import DEFAULT_STORE, FormatOption, StoreOption, write


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "models", models)


def models(store: StoreOption = DEFAULT_STORE, form: FormatOption = "table") -> None:
    """List the models that have been scanned."""
    from scanner.store import open_store

    write(open_store(store).query("scans"), form)
