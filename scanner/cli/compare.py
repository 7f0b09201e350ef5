"""`rmtscan compare`: a base model and its fine-tune, matrix by matrix and vector by vector."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from scanner.cli.output import DEFAULT_STORE, Format, FormatOption, StoreOption, note, write
from scanner.cli.pool import AddressOption, GpusOption, WorkersOption, terminate_like_interrupt
from scanner.cli.scan import Sigma
from scanner.cli.selection import EmbeddingsOption, HeadsOption, LayersOption, OnlyOption, selection

if TYPE_CHECKING:
    from scanner.engine import ComparisonReport

#: Tensors that the summary names; the tables have all of them.
_NAMED = 8


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command("compare")(compare)


def compare(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A reference as for scan, or a scanned model's name.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="What became of it.")],
    store: StoreOption = DEFAULT_STORE,
    only: OnlyOption = "",
    layers: LayersOption = "",
    embeddings: EmbeddingsOption = False,
    heads: HeadsOption = False,
    sigma: Annotated[
        Sigma | None, typer.Option(help="The estimate of sigma that the bulk's edges come from; median unless named.")
    ] = None,
    null: Annotated[
        str | None, typer.Option(metavar="table|mc:N", help="Where p-values come from; table unless named.")
    ] = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    gpus_per_worker: GpusOption = None,
    download: Annotated[
        bool, typer.Option("--download", help="Take whole files from the Hub into its cache, not byte ranges.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Compare again what the store already holds.")] = False,
    form: FormatOption = Format.table,
) -> None:
    """Compare a pretrained model with its fine-tune: what changed, how much, and in which singular vectors.

    Both and their difference are scanned if the store does not have them yet. Matrices are matched by stack, layer, role,
    head and expert; what has no counterpart is listed. Prints a line for each role; the tables pairs, pair_vectors and
    pair_subspaces have the rest (queries pair_changes, pair_shift, pair_by_decile, pair_intruders).

    Scanned models that are named are compared as they were scanned, unless an option says what is to be compared, and how.

    Examples:

        rmtscan compare ./base ./tuned

        rmtscan compare org/base org/tuned --only query,value --store s3://bucket/results
    """
    from scanner.cli.progress import Progress
    from scanner.engine import Method, PoolOptions
    from scanner.engine import compare as run_comparison
    from scanner.rmt.ks_null import KsNull
    from scanner.store import open_store

    try:
        KsNull.parse(null or "table")
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--null") from error
    method = None
    if only or layers or embeddings or heads or sigma is not None or null is not None:
        chosen = selection(only, layers, embeddings, heads)
        method = Method(sigma=(sigma or Sigma.median).value, null=null or "table", selection=chosen)
    pool = PoolOptions(address=address, workers=workers, gpus_per_worker=gpus_per_worker)
    started = time.monotonic()
    with terminate_like_interrupt(), Progress(sys.stderr) as progress:
        try:
            report = run_comparison(
                base, tuned, store=store, method=method, pool=pool, force=force, download=download, observer=progress
            )
        except KeyboardInterrupt:
            progress.stop()
            note(f"\ninterrupted: what was finished is kept in {store}; the same command goes on from there")
            raise
    write(open_store(report.store).query("pair_summary", pair_id=report.pair_id, heads=report.heads), form)
    _tell(report, time.monotonic() - started)
    if report.failed:
        raise typer.Exit(3)


def _tell(report: ComparisonReport, seconds: float) -> None:
    from scanner.checkpoint.names import printable

    state = "" if report.new else " (already in the store)"
    note(f"{report.matrices} pairs of matrices compared{state}; {len(report.identical)} exactly unchanged")
    if report.change_median is not None:
        note(
            f"  relative change: median {report.change_median:.3g}, largest {report.change_largest:.3g} "
            f"({printable(report.largest_in)})"
        )
    groups = {"exactly unchanged": list(report.identical), **report.unmatched, "FAILED": list(report.failed)}
    for reason, tensors in groups.items():
        if tensors:
            more = f" and {len(tensors) - _NAMED} more" if len(tensors) > _NAMED else ""
            note(f"  {printable(reason)}: {', '.join(printable(name) for name in tensors[:_NAMED])}{more}")
    note(f"store: {report.store} ({seconds:.0f} s)")
