"""`rmtscan sql`: ask with SQL."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from scanner.cli import options
from scanner.cli.answers import AnswerOptions, printer
from scanner.cli.output import DEFAULT_STORE, StoreOption
from scanner.cli.progress import waiting


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "sql", sql)


def sql(
    *,
    statement: Annotated[
        str, typer.Argument(metavar="STATEMENT", help="One SELECT statement in DuckDB's SQL.", show_default=False)
    ],
    store: StoreOption = DEFAULT_STORE,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", metavar="SECONDS", help="End the statement with an error after this time.", show_default=False
        ),
    ] = None,
    table: AnswerOptions,
) -> None:
    """Ask with SQL.

    The tables are scans, matrices, vectors, failures, controls, matrix_controls; comparisons, pairs, pair_vectors,
    pair_subspaces; experiments, overlaps, overlap_maps, activation_spectra, ablations, finetunes, baselines, run_skips;
    nights, releases.
    For a matrix or pair that was computed more than once, they hold the newest result; all_matrices, all_vectors,
    all_pairs, all_pair_vectors and all_pair_subspaces hold all results. Write "overlaps" in double quotes: it is a keyword
    of SQL.

    Only SELECT is accepted, and it reads nothing outside the store.

    Examples:

        rmtscan sql "SELECT role, avg(v_p) FROM vectors WHERE region = 'left' GROUP BY role"
    """
    from scanner.store import open_store

    show = printer(table, what="the answer")
    with waiting(sys.stderr, "asking"):
        answer = open_store(store).sql(statement, timeout=timeout)
    show(answer)
