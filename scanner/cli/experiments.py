"""The verbs of the experiments: options from their configurations, results from their named queries."""

from __future__ import annotations

from typing import Any

import typer

from scanner.cli.options import register as register_verb
from scanner.cli.output import DEFAULT_STORE, Format, FormatOption, StoreOption, note, write
from scanner.cli.pool import AddressOption, GpusOption, WorkersOption
from scanner.cli.run import run_verb
from scanner.experiments import Experiment, Report, experiments


def register(app: typer.Typer) -> None:
    """Add a verb for each experiment, those of extensions included."""
    for experiment in experiments().values():
        register_verb(app, experiment.name, _verb(experiment), help=experiment.help.strip())


def _verb(experiment: Experiment[Any]) -> Any:
    def verb(
        config: Any,
        store: StoreOption = DEFAULT_STORE,
        address: AddressOption = None,
        workers: WorkersOption = None,
        gpus_per_worker: GpusOption = None,
        form: FormatOption = Format.table,
    ) -> None:
        from scanner.checkpoint.names import printable
        from scanner.engine import Observer, PoolOptions
        from scanner.experiments import run_experiment
        from scanner.store import open_store

        def call(observer: Observer) -> Report:
            pool = PoolOptions(address=address, workers=workers, gpus_per_worker=gpus_per_worker)
            return run_experiment(experiment, config, store=store, pool=pool, observer=observer)

        def show(report: Report) -> None:
            extra = experiment.table_parameters if form is Format.table else {}
            write(open_store(report.store).query(experiment.query, **report.parameters, **extra), form)
            for line in report.notes:
                note(f"  {printable(line)}")
            for name, reason in sorted(report.failed.items()):
                note(f"  FAILED {name}: {printable(reason)}")
            runs = f"run {report.run_id}: " if len(report.run_ids) == 1 else ""
            note(
                f"{runs}{report.total} {report.unit}, {report.kept} of them from earlier runs, {len(report.failed)} failed"
            )

        run_verb(call, show, store=store)

    verb.__name__ = experiment.name.replace("-", "_")
    verb.__annotations__["config"] = experiment.config
    return verb
