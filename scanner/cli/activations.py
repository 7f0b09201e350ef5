"""`rmtscan activations`: what enters the matrices, beside their singular vectors."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from scanner.cli import options
from scanner.cli.output import DEFAULT_STORE, FormatOption, StoreOption, note, write
from scanner.cli.run import terminate_like_interrupt
from scanner.cli.selection import LayersOption, RolesOption, selection
from scanner.cli.texts import ColumnOption, DtypeOption, SecondOption, TextOption, WhereOption, text_source
from scanner.engine.options import PoolOptions


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "activations", activations, aliases={"--only": "--roles"})


def activations(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="A model: a folder, a GGUF file, org/name[@revision].")
    ],
    text: TextOption,
    *,
    store: StoreOption = DEFAULT_STORE,
    column: ColumnOption = None,
    second: SecondOption = None,
    where: WhereOption = None,
    tokens: Annotated[
        int,
        typer.Option(
            min=1, help="Read so many at most; of a table rows drawn from all of it (of the Hub's, from its first)."
        ),
    ] = 16_384,
    window: Annotated[
        int | None, typer.Option(min=2, help="Tokens in a sequence.", show_default="512, or what the model takes")
    ] = None,
    roles: RolesOption = "",
    layers: LayersOption = "",
    dtype: DtypeOption = "float32",
    pool: PoolOptions,
    form: FormatOption = "table",
) -> None:
    """Compare the activations that enter each matrix with its singular vectors: overlaps with their covariance's eigenvectors.

    The model reads a text; covariances are accumulated in float64, centred and not. Rows go to the tables overlaps and
    activation_spectra; blocks that are there are not measured again. Prints query overlap_vs_region.

    Examples:

        rmtscan activations ./my-model --text novel.txt

        rmtscan activations ./encoder --text reviews.csv --column text --where source=rotten_tomatoes --tokens 50000
    """
    from scanner.cli.progress import Progress
    from scanner.experiments.activation_run import measure_activations
    from scanner.store import open_store

    source = text_source(text, column, second, where)
    chosen = selection(roles, layers)
    started = time.monotonic()
    with terminate_like_interrupt(), Progress(sys.stderr) as progress:
        try:
            report = measure_activations(
                reference,
                source,
                store=store,
                selection=chosen,
                tokens=tokens,
                window=window,
                dtype=dtype,
                pool=pool,
                observer=progress,
            )
        except KeyboardInterrupt:
            progress.stop()
            note(f"\ninterrupted: existing results are kept in {store}; the same command resumes")
            raise
    write(open_store(store).query("overlap_vs_region", run=report.run_id), form)
    for tensor, why in sorted(report.skipped.items()):
        note(f"  skipped {tensor}: {why}")
    for name, why in sorted(report.failed.items()):
        note(f"  FAILED {name}: {why}")
    if report.warning:
        note(f"warning: {report.warning}")
    state = "measured" if report.new else "already there"
    note(
        f"run {report.run_id} {state}: {report.matrices - len(report.skipped)} matrices, {report.tokens} tokens; "
        f"store: {report.store} ({time.monotonic() - started:.0f} s)"
    )
    if report.failed:
        raise typer.Exit(3)
