"""Verbs of experiments: each derives from the configuration of its experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import typer

from scanner.cli.options import register
from scanner.cli.output import DEFAULT_STORE, FormatOption, StoreOption, note, write
from scanner.cli.run import Report, run_verb
from scanner.engine.options import PoolOptions

if TYPE_CHECKING:
    from scanner.engine import Observer


class ExperimentReport(Report, Protocol):
    """What an experiment reports at its end."""

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Identities of the runs."""

    @property
    def unit(self) -> str:
        """What is counted: points, blocks, networks."""

    @property
    def total(self) -> int:
        """Number of results that were asked for."""

    @property
    def kept(self) -> int:
        """Number of results from earlier calls."""

    @property
    def failed(self) -> Mapping[str, str]:
        """Missing results, and why they are missing."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about the run."""

    @property
    def parameters(self) -> Mapping[str, object]:
        """Parameters of the query that shows the results."""


def add_experiment(
    app: typer.Typer,
    name: str,
    config: type,
    run: Callable[..., ExperimentReport],
    *,
    query: str,
    in_table: Mapping[str, object] | None = None,
    help: str | None = None,
) -> None:
    """Add the verb of an experiment: the options of its configuration and of the pool, `--store` and `--format`.

    Args:
        app: the application.
        name: name of the verb.
        config: frozen dataclass with a docstring under every field.
        run: called as `run(config, store=..., pool=..., observer=...)`.
        query: the named query whose rows are printed.
        in_table: more parameters of the query if its rows are printed as a table for people.
        help: text of the help; None: the docstring of `config`.
    """

    def verb(
        config: Any, *, store: StoreOption = DEFAULT_STORE, pool: PoolOptions, form: FormatOption = "table"
    ) -> None:
        from scanner.checkpoint.names import printable
        from scanner.store import open_store

        def call(observer: Observer) -> ExperimentReport:
            return run(config, store=store, pool=pool, observer=observer)

        def show(report: ExperimentReport) -> None:
            shorter = (in_table or {}) if form == "table" else {}
            write(open_store(report.store).query(query, **{**report.parameters, **shorter}), form)
            if shorter:
                note(f"all results: rmtscan query {query} --store {report.store}")
            for item, reason in sorted(report.failed.items()):
                note(f"  FAILED {printable(item)}: {printable(reason)}")
            for line in report.notes:
                note(printable(line))
            runs = f"run {report.run_ids[0]}" if len(report.run_ids) == 1 else f"{len(report.run_ids)} runs"
            counts = f"{report.kept} of them from earlier runs, {len(report.failed)} failed"
            note(f"{runs}: {report.total} {report.unit}, {counts}")

        run_verb(call, show, store=store)

    verb.__annotations__["config"] = config
    register(app, name, verb, help=help or config.__doc__)
