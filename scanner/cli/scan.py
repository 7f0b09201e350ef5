"""`rmtscan scan`: analyze the weight matrices of checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from scanner.cli import options
from scanner.cli.output import DEFAULT_STORE, Format, FormatOption, StoreOption, note, note_skipped, write
from scanner.cli.run import run_verb
from scanner.engine.method import Method
from scanner.engine.options import PoolOptions, ScanOptions

if TYPE_CHECKING:
    from scanner.engine import Observer, ScanReport


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "scan", scan)


def scan(
    references: Annotated[
        list[str],
        typer.Argument(
            metavar="REF", help=r"Checkpoints: a folder or file, org/name\[@revision], a URL, delta:BASE..TUNED."
        ),
    ],
    *,
    store: StoreOption = DEFAULT_STORE,
    method: Method,
    how: ScanOptions,
    pool: PoolOptions,
    form: FormatOption = "table",
) -> None:
    """Scan checkpoints: compare every weight matrix with random matrix theory, one row per singular triplet.

    Results are written to the store. Existing results are reused, and an interrupted scan resumes.

    Examples:

        rmtscan scan ./my-model

        rmtscan scan ./base ./tuned --store results --roles query,key --layers 0-5

        rmtscan scan org/name@main model.gguf delta:org/base..org/tuned --heads

        rmtscan scan ./my-model --address auto --gpus-per-worker 0.5
    """

    def call(observer: Observer) -> ScanReport:
        from scanner.engine.scan import scan as run_scan

        return run_scan(
            references,
            store=store,
            method=method,
            ensembles=how.ensembles,
            draws=how.control_draws,
            pool=pool,
            force=how.force,
            download=how.download,
            observer=observer,
        )

    run_verb(call, lambda report: _show(report, form), store=store)


def _show(report: ScanReport, form: Format) -> None:
    import pyarrow as pa

    from scanner.checkpoint.formats.commands import beside_note
    from scanner.checkpoint.names import printable

    scanned = [model for model in report.models if model.error is None]
    if not scanned and form == "table":  # the errors have just been shown, and there is nothing else
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
        note_skipped({reason: len(tensors) for reason, tensors in model.skipped.items()}, before=f"{model.model}: ")
        if model.beside:
            note(f"  {model.model}: {beside_note(model.beside)}")
        if model.failed:
            note(
                f'  {model.model}: {model.failed} FAILED; see: rmtscan sql "SELECT * FROM failures" --store {report.store}'
            )
    for model in report.errors if scanned else ():  # else they have just been shown
        note(f"error: cannot scan {printable(model.reference)}: {model.error}")
