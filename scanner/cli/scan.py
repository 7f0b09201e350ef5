"""`rmtscan scan`: the main job on the command line, with its progress and its summary."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from scanner.cli.output import DEFAULT_STORE, Format, FormatOption, StoreOption, note, write
from scanner.cli.pool import AddressOption, GpusOption, WorkersOption, terminate_like_interrupt
from scanner.cli.selection import (
    EmbeddingsOption,
    HeadsOption,
    LayersOption,
    OnlyOption,
    one_of,
    selection,
    split_names,
)

if TYPE_CHECKING:
    from scanner.engine import ScanReport


class Sigma(StrEnum):
    """Estimates of sigma."""

    median = "median"
    std = "std"
    init = "init"
    bulk = "bulk"


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command("scan")(scan)


def scan(
    references: Annotated[
        list[str],
        typer.Argument(
            metavar="REF", help="Checkpoints: a folder or file, org/name[@revision], a URL, delta:BASE..TUNED."
        ),
    ],
    store: StoreOption = DEFAULT_STORE,
    only: OnlyOption = "",
    layers: LayersOption = "",
    embeddings: EmbeddingsOption = False,
    heads: HeadsOption = False,
    sigma: Annotated[Sigma, typer.Option(help="The estimate of sigma that the bulk's edges come from.")] = Sigma.median,
    null: Annotated[str, typer.Option(metavar="table|mc:N", help="Where p-values come from.")] = "table",
    ensemble: Annotated[str, typer.Option(metavar="NAME,...", help="Random controls.")] = "gaussian,kaiming_uniform",
    address: AddressOption = None,
    workers: WorkersOption = None,
    gpus_per_worker: GpusOption = None,
    download: Annotated[
        bool, typer.Option("--download", help="Take whole files from the Hub into its cache, not byte ranges.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Scan again what the store already holds.")] = False,
    form: FormatOption = Format.table,
) -> None:
    """Scan checkpoints: every weight matrix against random matrix theory, one row per singular triplet.

    Results go to the store; what is there already is not done again, and an interrupted scan goes on where it was.

    Examples:

        rmtscan scan ./my-model

        rmtscan scan ./base ./tuned --store results --only query,key --layers 0-5

        rmtscan scan org/name@main model.gguf delta:org/base..org/tuned --heads

        rmtscan scan ./my-model --address auto --gpus-per-worker 0.5
    """
    from scanner.cli.progress import Progress
    from scanner.engine import Method, PoolOptions
    from scanner.engine import scan as run_scan
    from scanner.rmt.ensembles import ENSEMBLES
    from scanner.rmt.ks_null import KsNull

    ensembles = one_of(split_names(ensemble), ENSEMBLES, "--ensemble")
    try:
        KsNull.parse(null)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--null") from error
    chosen = selection(only, layers, embeddings, heads)
    method = Method(sigma=sigma.value, null=null, selection=chosen)
    pool = PoolOptions(address=address, workers=workers, gpus_per_worker=gpus_per_worker)
    started = time.monotonic()
    with terminate_like_interrupt(), Progress(sys.stderr) as progress:
        try:
            report = run_scan(
                references,
                store=store,
                method=method,
                ensembles=ensembles,  # type: ignore[arg-type]  # checked above
                pool=pool,
                force=force,
                download=download,
                observer=progress,
            )
        except KeyboardInterrupt:
            progress.stop()
            kept = f"{progress.stored} matrices are" if progress.planned else "whatever was finished is"
            note(f"\ninterrupted: {kept} kept in {store}; the same command goes on from there (--force begins anew)")
            raise
    _summarise(report, time.monotonic() - started, form)
    if report.errors:
        raise typer.Exit(1)
    if report.failed:
        raise typer.Exit(3)


def _summarise(report: ScanReport, seconds: float, form: Format) -> None:
    import pyarrow as pa

    from scanner.checkpoint.names import printable

    scanned = [model for model in report.models if model.error is None]
    if not scanned and form is Format.table:  # the errors have just been shown, and there is nothing else to say
        return
    columns: dict[str, list[object]] = {
        "model": [model.model for model in scanned],
        "revision": [model.revision for model in scanned],
        "analysed": [model.analysed for model in scanned],
        "skipped": [model.skipped_count for model in scanned],
        "failed": [model.failed for model in scanned],
        "scan_id": [model.scan_id for model in scanned],
        "state": ["new" if model.new else "already scanned" for model in scanned],
    }
    schema = pa.schema(
        [(name, pa.int32() if name in {"analysed", "skipped", "failed"} else pa.string()) for name in columns]
    )
    write(pa.table(columns, schema=schema), form)
    for model in scanned:
        for reason, tensors in sorted(model.skipped.items(), key=lambda item: -len(item[1])):
            note(f"  {model.model}: {len(tensors)} skipped: {reason}")
        if model.failed:
            note(
                f'  {model.model}: {model.failed} FAILED; see: rmtscan sql "SELECT * FROM failures" --store {report.store}'
            )
    for model in report.errors if scanned else ():  # else they have only just been shown
        note(f"error: cannot scan {printable(model.reference)}: {model.error}")
    note(f"store: {report.store} ({seconds:.0f} s)")
