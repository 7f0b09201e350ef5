"""The verbs of all experiments, those of extensions included."""

from __future__ import annotations

from functools import partial

import typer

from scanner.cli.experiment import add_experiment
from scanner.experiments import experiments, run_experiment


def register(app: typer.Typer) -> None:
    """Add a verb for each experiment."""
    for experiment in experiments().values():
        add_experiment(
            app,
            experiment.name,
            experiment.config,
            partial(run_experiment, experiment),
            query=experiment.query,
            in_table=experiment.table_parameters,
            help=experiment.help.strip(),
        )
