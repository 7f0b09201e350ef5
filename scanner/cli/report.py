"""`rmtscan report`: write an HTML report of scanned models."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from scanner.cli import options
from scanner.cli.output import DEFAULT_STORE, StoreOption, note
from scanner.cli.progress import waiting


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "report", report)


def report(
    references: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REF",
            help="Scanned models: their names or unique parts of them, or the places from which they were scanned.",
            show_default="all models of the store",
        ),
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="HTML file to write.")] = "report.html",
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write a report of scanned models: findings, interactive figures and tables in one HTML file.

    The file opens in any browser without a network. It includes compared pairs if both models are in the report, and the
    experiments on its models. For many models, see `rmtscan site` and `rmtscan serve`.

    Examples:

        rmtscan report -o report.html

        rmtscan report ./base ./tuned -o pair.html --store results
    """
    from scanner.cli.choosing import whole_name
    from scanner.report import write_report
    from scanner.store import open_store

    with waiting(sys.stderr, "reading the store") as say:
        opened = open_store(store)
        named = [whole_name(opened, reference) for reference in references or []]
        written = write_report(opened, named, output, progress=lambda text: say(f"reporting on {text}"))
    models = "1 model" if len(written.models) == 1 else f"{len(written.models)} models"
    pairs = f", {written.pairs} compared {'pair' if written.pairs == 1 else 'pairs'}" if written.pairs else ""
    note(f"{written.path}: {models}{pairs}, {written.bytes / 1e6:.1f} MB; open it in a browser")
