"""`rmtscan nightly`: scan what is new on the Hub, within a budget."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scanner.cli import options
from scanner.cli.answers import Print, TableOptions, printer
from scanner.cli.logs import LogFormatOption
from scanner.cli.output import note
from scanner.cli.run import run_verb
from scanner.engine.options import PoolOptions

if TYPE_CHECKING:
    from scanner.engine import Observer
    from scanner.fleet.nightly import NightReport

_CONFIG = "watch.toml"
_COLUMNS = ("repository", "commit", "state", "bytes", "expected_hours", "compared_with", "reason")


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "nightly", nightly)


def nightly(
    context: typer.Context,
    path: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="The configuration; the same as --config.", show_default=False),
    ] = None,
    *,
    config: Annotated[
        str, typer.Option("--config", "-c", metavar="FILE", help="The configuration, a TOML file.", show_default=True)
    ] = _CONFIG,
    init: Annotated[
        bool, typer.Option("--init", help="Write a commented configuration to this file, and end.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan with expected bytes and hours; nothing is written.")
    ] = False,
    pool: PoolOptions,
    table: TableOptions,
    log_format: LogFormatOption = None,
) -> None:
    """Scan what is new on the Hub: list new releases, scan what fits into the budget of a night, and write a digest.

    The configuration names what to watch, the budget of a night, and where the store and the digests are. What does not fit waits
    for the next night. The same command again does nothing, and continues what was interrupted. One line on stderr tells what
    was done, for the mail of cron. Options that say where it runs replace those of the configuration. docs/nightly.md explains the
    configuration and the digest.

    Examples:

        rmtscan nightly --init watch.toml

        rmtscan nightly --config watch.toml --dry-run

        rmtscan nightly --config watch.toml
    """
    show = printer(table, columns=_COLUMNS)
    file = Path(path or config)
    if init:
        _write(file)
        return

    from scanner.fleet.config import read_config

    found = read_config(file)
    names = options.given_names(context)
    given = {one.name: getattr(pool, one.name) for one in fields(pool) if one.name in names}
    found = replace(found, pool=replace(found.pool, **given))

    def call(observer: Observer) -> NightReport:
        from scanner.fleet.nightly import run_night

        return run_night(found, observer=observer, dry_run=dry_run, progress=note)

    run_verb(call, lambda report: _show(report, table, show), store=found.output.store, log_format=log_format)


def _write(file: Path) -> None:
    from scanner.errors import ScannerError
    from scanner.fleet.config import template

    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(template())
    except FileExistsError as error:
        raise ScannerError(f"{str(file)!r} exists: remove it, or name another file") from error
    except OSError as error:
        raise ScannerError(f"{str(file)!r} cannot be written: {error.strerror}") from error
    note(f"{file} written; edit it, then: rmtscan nightly --config {file} --dry-run")


def _show(report: NightReport, table: TableOptions, show: Print) -> None:
    import pyarrow as pa

    from scanner.checkpoint.names import printable

    compared = {entry.release.key: entry.base.repository for entry in report.planned if entry.base is not None}
    notes = {entry.release.key: entry.note for entry in report.planned}
    planned = {entry.release.key for entry in report.planned} if report.dry_run else set()
    rows = [
        {
            "repository": one.repository,
            "commit": one.commit[:12],
            "state": "planned" if one.key in planned else one.state,
            "bytes": one.bytes,
            "expected_hours": None if one.expected_seconds is None else one.expected_seconds / 3600,
            "compared_with": compared.get(one.key),
            "reason": notes.get(one.key) if one.key in planned else one.reason,
        }
        for one in report.releases
    ]
    failed = {one.scan_id: one.reason for one in report.failed_upgrades}
    rows += [
        {
            "repository": one.model,
            "commit": one.scan_id[:12],
            "state": "failed" if one.scan_id in failed else "upgrade",
            "bytes": one.bytes,
            "reason": failed.get(one.scan_id, f"scanned with version {one.version} of the method"),
        }
        for one in report.upgrades
    ]
    kinds = {"bytes": pa.int64(), "expected_hours": pa.float64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in _COLUMNS])
    if rows or table.form != "table":
        show(pa.Table.from_pylist(rows, schema=schema))
    for problem in report.problems:
        note(f"warning: {printable(problem)}")
    if report.digest is not None:
        note(f"digest: {report.digest}")
    note(f"nightly: {report.summary}")
