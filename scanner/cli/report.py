"""`rmtscan report`: what a store says about models, as one HTML file."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from scanner.cli import options
from scanner.cli.output import DEFAULT_STORE, StoreOption, note


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "report", report)


def report(
    references: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REF",
            help="Scanned models, by name or by where they were scanned from.",
            show_default="all of the store",
        ),
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The HTML file.")] = "report.html",
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write a report of scanned models: findings, interactive figures and tables in one HTML file.

    It opens in any browser without a network. Pairs that were compared are in it when both models are.
    Experiments are not: `rmtscan query experiments` lists their runs, `rmtscan plot --list` their figures.

    Examples:

        rmtscan report -o report.html

        rmtscan report ./base ./tuned -o pair.html --store results
    """
    from scanner.figures.report import write_report
    from scanner.store import open_store

    def tell(text: str) -> None:
        if sys.stderr.isatty():
            note(f"reporting on {text}")

    written = write_report(open_store(store), references or [], output, progress=tell)
    models = "1 model" if len(written.models) == 1 else f"{len(written.models)} models"
    pairs = f", {written.pairs} compared {'pair' if written.pairs == 1 else 'pairs'}" if written.pairs else ""
    note(f"{written.path}: {models}{pairs}, {written.bytes / 1e6:.1f} MB; open it in a browser")
