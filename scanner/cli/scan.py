"""`rmtscan scan`: analyze the weight matrices of checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scanner.cli import options
from scanner.cli.answers import Print, TableOptions, named, printer
from scanner.cli.logs import LogFormatOption, say_error
from scanner.cli.output import DEFAULT_STORE, StoreOption, note, note_skipped
from scanner.cli.run import run_verb
from scanner.cli.tables import View
from scanner.engine.method import Method
from scanner.engine.options import PoolOptions, ReuseOptions, ScanOptions
from scanner.errors import ConfigError, ScannerError

if TYPE_CHECKING:
    from scanner.engine import Observer, ScanReport


#: Columns of the summary that a terminal shows.
#: `analysed` is the name of a field of the JSON output, which programs read.
_SHOWN = ("model", "state", "analysed", "skipped", "failed", "scan_id")
#: Above this number of models, the tensors that each of them skips are not summed up.
_MOST_NOTES = 20


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "scan", scan)


def scan(
    references: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REF",
            help=r"Checkpoints: a folder or file, org/name\[@revision], a URL, delta:BASE..TUNED.",
            show_default=False,
        ),
    ] = None,
    *,
    context: typer.Context,
    listed: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Also the references in a text file, one a line; # begins a comment; - reads them from stdin.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="Name of the model in the store, of a single REF.",
            show_default="that of the checkpoint",
        ),
    ] = None,
    upgrade: Annotated[
        bool,
        typer.Option(
            "--upgrade", help="Without REF: scan again what the store has of an earlier version of the method."
        ),
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    method: Method,
    how: ScanOptions,
    pool: PoolOptions,
    table: TableOptions,
    log_format: LogFormatOption = None,
) -> None:
    """Scan checkpoints: compare every weight matrix with random matrix theory, one row per singular triplet.

    Results are written to the store. Existing results are reused, and an interrupted scan resumes.

    Examples:

        rmtscan scan ./my-model

        rmtscan scan ./base ./tuned --store results --roles query,key --layers 0-5

        rmtscan scan org/name@main model.gguf delta:org/base..org/tuned --heads

        rmtscan scan ./my-model --address auto --gpus-per-worker 0.5

        rmtscan scan ./run/checkpoint-500 --name run/step-500

        rmtscan scan --from models.txt --store s3://bucket/results

        rmtscan scan --upgrade --store results
    """
    if upgrade and (references or listed is not None):
        raise typer.BadParameter("--upgrade takes no REF: it scans again what the store has", param_hint="REF")
    if upgrade and (ignored := options.given(context, Method, ReuseOptions)):
        raise typer.BadParameter(
            f"--upgrade repeats every scan with its own parameters: leave out {', '.join(ignored)}, or name checkpoints instead",
            param_hint=ignored[0],
        )
    if name is not None and (upgrade or listed is not None):
        raise typer.BadParameter("--name names the model of a single REF", param_hint="--name")
    if not (upgrade or references or listed is not None):
        raise typer.BadParameter("name a checkpoint, or a file of references with --from", param_hint="REF")

    view = View(shown=named(_SHOWN), totals=("analysed", "skipped", "failed"))
    show = printer(table, view, columns=(*_SHOWN, "revision"), rows=None)

    def call(observer: Observer) -> ScanReport:
        if upgrade:
            from scanner.fleet.backfill import upgrade as run_upgrade
            from scanner.store import open_store

            return run_upgrade(
                open_store(store),
                ensembles=how.ensembles,
                draws=how.control_draws,
                pool=pool,
                download=how.download,
                observer=observer,
            )
        from scanner.engine.scan import scan as run_scan

        return run_scan(
            _named(references or [], listed),
            store=store,
            method=method,
            ensembles=how.ensembles,
            draws=how.control_draws,
            pool=pool,
            force=how.force,
            download=how.download,
            name=name,
            observer=observer,
        )

    run_verb(call, lambda report: _show(report, table, show, name), store=store, log_format=log_format)


def _named(references: list[str], listed: str | None) -> Iterable[str]:
    """Return the references of the command line, then those of a file; those on stdin are read as the scan proceeds.

    Raises:
        ScannerError: the file cannot be read, or names nothing.
    """
    if listed is None:
        return references
    if listed == "-":
        return _with_stdin(references)
    try:
        text = Path(listed).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError("listed", f"is {listed!r}, which is not a text file in UTF-8") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError("listed", f"is {listed!r}, which cannot be read: {reason}") from error
    found = [*references, *_references_in(text.splitlines())]
    if not found:
        raise ConfigError("listed", f"is {listed!r}, which names no checkpoint: write one reference a line")
    return found


def _with_stdin(references: list[str]) -> Iterator[str]:
    yield from references
    found = len(references)
    try:
        for reference in _references_in(sys.stdin):
            found += 1
            yield reference
    except UnicodeDecodeError as error:
        raise ScannerError("the references on stdin are not text in UTF-8") from error
    if not found:
        raise ScannerError("stdin names no checkpoint: write one reference a line")


def _references_in(lines: Iterable[str]) -> Iterator[str]:
    """Yield the references in lines; a comment begins with # at the start of a line or after a space."""
    for line in lines:
        reference = "" if line.lstrip().startswith("#") else line.replace("\t", " ").partition(" #")[0].strip()
        if reference:
            yield reference


def _show(report: ScanReport, table: TableOptions, show: Print, name: str | None) -> None:
    import pyarrow as pa

    from scanner.checkpoint.formats.commands import beside_note
    from scanner.checkpoint.names import printable

    scanned = [model for model in report.models if model.error is None]
    if not report.models:
        note("no scan of an earlier method")
    if not scanned and table.form == "table":  # the errors have just been shown, and there is nothing else
        return
    columns: dict[str, list[object]] = {
        "model": [model.model for model in scanned],
        "revision": [model.revision for model in scanned],
        "analysed": [model.analyzed for model in scanned],
        "skipped": [model.skipped_count for model in scanned],
        "failed": [model.failed for model in scanned],
        "scan_id": [model.scan_id for model in scanned],
        "state": ["new" if model.new else "already scanned" for model in scanned],
    }
    schema = pa.schema(
        [(name, pa.int32() if name in {"analysed", "skipped", "failed"} else pa.string()) for name in columns]
    )
    show(pa.table(columns, schema=schema))
    for model in scanned:
        if name is not None and model.model != name:
            note(
                f"  the store has this content as {printable(model.model)}; --force scans it again under the name {name}"
            )
        if len(scanned) <= _MOST_NOTES:
            note_skipped({reason: len(names) for reason, names in model.skipped.items()}, before=f"{model.model}: ")
        if model.beside:
            note(f"  {model.model}: {beside_note(model.beside)}")
        if model.failed:
            note(
                f'  {model.model}: {model.failed} FAILED; see: rmtscan sql "SELECT * FROM failures" --store {report.store}'
            )
    for model in report.errors if scanned else ():  # else they have just been shown
        say_error(f"cannot scan {printable(model.reference)}: {model.error}")
