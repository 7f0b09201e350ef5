"""The verbs of all experiments, those of extensions included: each derives from the configuration of its experiment."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from scanner.cli import options
from scanner.cli.answers import TableOptions, printer
from scanner.cli.logs import LogFormatOption
from scanner.cli.output import DEFAULT_STORE, StoreOption, note
from scanner.cli.progress import waiting
from scanner.cli.run import run_verb
from scanner.cli.tables import view_of
from scanner.engine.options import PoolOptions, ReuseOptions
from scanner.experiments import Experiment, Report, experiments, run_experiment

if TYPE_CHECKING:
    from scanner.engine import Observer


def register(app: typer.Typer) -> None:
    """Add a verb for each experiment."""
    for experiment in experiments().values():
        add_experiment(app, experiment)


def add_experiment(app: typer.Typer, experiment: Experiment[Any], run: Callable[..., Report] = run_experiment) -> None:
    """Add the verb of an experiment: the options of its configuration and of the pool, `--store`, `--force` and those of tables."""

    def verb(
        config: Any,
        *,
        store: StoreOption = DEFAULT_STORE,
        reuse: ReuseOptions,
        pool: PoolOptions,
        table: TableOptions,
        log_format: LogFormatOption = None,
    ) -> None:
        from scanner.checkpoint.names import printable
        from scanner.store import open_store
        from scanner.store.queries import find_query

        query = find_query(experiment.query)
        print_rows = printer(table, view_of(query), columns=[column.name for column in query.columns])

        def call(observer: Observer) -> Report:
            return run(experiment, config, store=store, pool=pool, force=reuse.force, observer=observer)

        def show(report: Report) -> None:
            shorter = experiment.table_parameters if table.form == "table" else {}
            with waiting(sys.stderr, "reading the results"):
                answer = open_store(report.store).query(experiment.query, **{**report.parameters, **shorter})
            print_rows(answer)
            if shorter:
                note(f"all results: rmtscan query {experiment.query} --store {report.store}")
            for item, reason in sorted(report.failed.items()):
                note(f"  FAILED {printable(item)}: {printable(reason)}")
            for line in report.notes:
                note(printable(line))
            runs = f"run {report.run_ids[0]}" if len(report.run_ids) == 1 else f"{len(report.run_ids)} runs"
            counts = f"{report.kept} of them from earlier runs, {len(report.failed)} failed"
            note(f"{runs}: {report.total} {report.unit}, {counts}")

        run_verb(call, show, store=store, log_format=log_format)

    verb.__annotations__["config"] = experiment.config
    options.register(app, experiment.name, verb, help=experiment.help.strip())
