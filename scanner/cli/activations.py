"""`rmtscan activations`: what enters the matrices, beside their singular vectors."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from scanner.cli.output import DEFAULT_STORE, Format, FormatOption, StoreOption, note, write
from scanner.cli.pool import AddressOption, GpusOption, WorkersOption, terminate_like_interrupt
from scanner.cli.selection import LayersOption, OnlyOption, selection
from scanner.cli.texts import ColumnOption, Dtype, DtypeOption, SecondOption, TextOption, WhereOption, text_source


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command("activations")(activations)


def activations(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="A model: a folder, a GGUF file, org/name[@revision].")
    ],
    text: TextOption,
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
    only: OnlyOption = "",
    layers: LayersOption = "",
    dtype: DtypeOption = Dtype.float32,
    address: AddressOption = None,
    workers: WorkersOption = None,
    gpus_per_worker: GpusOption = None,
    form: FormatOption = Format.table,
) -> None:
    """Compare the activations that enter each matrix with its singular vectors: overlaps with their covariance's eigenvectors.

    The model reads a text; covariances are accumulated in float64, centred and not. Rows go to the tables overlaps and
    activation_spectra; blocks that are there are not measured again. Prints query overlap_vs_region.

    Examples:

        rmtscan activations ./my-model --text novel.txt

        rmtscan activations ./encoder --text reviews.csv --column text --where source=rotten_tomatoes --tokens 50000
    """
    from scanner.cli.progress import Progress
    from scanner.engine import PoolOptions
    from scanner.experiments.activation_run import measure_activations
    from scanner.store import open_store

    source = text_source(text, column, second, where)
    chosen = selection(only, layers, False, False)
    pool = PoolOptions(address=address, workers=workers, gpus_per_worker=gpus_per_worker)
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
                dtype=dtype.value,
                pool=pool,
                observer=progress,
            )
        except KeyboardInterrupt:
            progress.stop()
            note(f"\ninterrupted: finished blocks are kept in {store}; the same command goes on from there")
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
