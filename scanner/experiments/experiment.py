"""Experiments as a configuration, a plan made from it and a run of the plan, and the registry of all experiments."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from scanner import display
from scanner.checkpoint.sources.files import FileVersion, check_unchanged
from scanner.engine.work import Observer, Stored, Work
from scanner.errors import ChangedError, ScannerError
from scanner.extensions import load_extensions
from scanner.version import __version__

if TYPE_CHECKING:
    from scanner.engine import PoolOptions
    from scanner.engine.task import Failure, Task
    from scanner.store import Store

AnyConfig = TypeVar("AnyConfig")

#: Increased whenever the same call would give different numbers; part of the identity of every run.
EXPERIMENTS_VERSION = 3

#: Modules of this package that register an experiment.
_MODULES = ("activations", "ablate", "finetune", "slicing", "lazy_learning")


@dataclass(frozen=True, kw_only=True)
class Call:
    """Where an experiment runs and stores its results, and who observes it."""

    store: str
    """URL of the store; created if it does not exist."""
    pool: PoolOptions
    observer: Observer
    force: bool = False
    """Compute again even if the store has the results."""

    def open_store(self) -> Store:
        """Open the store. A plan does so last, so that invalid input leaves no empty store behind."""
        from scanner.store import open_store

        return open_store(self.store, create=True)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of one call of an experiment."""

    store: str
    run_ids: tuple[str, ...]
    """Identities of the runs whose results are in the store now."""
    unit: str
    """What is counted: points, blocks, networks."""
    total: int
    """Number of results that were asked for."""
    kept: int
    """Number of results from earlier calls."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Missing results -> reason; the same call tries them again."""
    model: str = ""
    revision: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Other results of the experiment, by name."""
    notes: tuple[str, ...] = ()
    """The same as lines of text for people."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    """Parameters of the named query that shows the results."""

    def __repr__(self) -> str:
        model = f"{display.plain(self.model)!r}: " if self.model else ""
        runs = ", ".join(map(display.plain, self.run_ids[:3])) + (" …" if len(self.run_ids) > 3 else "")
        return (
            f"Report({model}{self.total} {self.unit}, {self.kept} from earlier calls, {len(self.failed)} failed; "
            f"run {runs}, store {display.plain(self.store)!r})"
        )

    def _repr_html_(self) -> str:
        rows: list[tuple[str, object]] = [
            ("results", f"{self.total} {self.unit}"),
            ("from earlier calls", self.kept),
            ("failed", len(self.failed)),
            *((name, value) for name, value in self.facts.items() if isinstance(value, str | int | float)),
            ("run", ", ".join(self.run_ids[:3])),
            ("store", self.store),
        ]
        notes = [*self.notes, *(f"{name}: {reason}" for name, reason in [*self.failed.items()][:3])]
        return display.html_table(("", ""), rows, caption=display.bold(self.model or "experiment"), notes=notes[:8])

    @property
    def run_id(self) -> str:
        """The identity of the only run."""
        [run_id] = self.run_ids
        return run_id

    @property
    def new(self) -> bool:
        """Whether this call computed anything."""
        return self.kept < self.total

    @property
    def exit_status(self) -> int:
        """0: done; 3: some results are missing."""
        return 3 if self.failed else 0


class ExperimentWork(Work):
    """The work of one call of an experiment, and its report."""

    versions: tuple[FileVersion, ...] = ()
    """Versions of the files of the model, as they were hashed."""

    def __init__(self, store: Store, *, force: bool = False) -> None:
        """With `force`, existing results are computed again."""
        self.store, self.force = store, force
        self.environment: dict[str, Any] = {}
        self.failures: dict[str, str] = {}
        self.started_at = datetime.now(UTC)

    @staticmethod
    def start() -> None:
        """Prepare a worker for forward passes."""
        from scanner.experiments.nlp.models import keep_freed_memory

        keep_freed_memory()

    def has(self, table: str, name: str) -> bool:
        """Whether the store has the rows of one file, and they are to be reused."""
        return not self.force and self.store.has_rows(table, name)

    def started(self, environment: dict[str, Any]) -> None:
        """Keep the description of the workers."""
        self.environment |= environment

    def check_inputs(self) -> None:
        """Compare the files of the model with those that were hashed: the weights of a loaded model may be pages of them.

        Raises:
            ChangedError: a file is another version, or gone.
        """
        check_unchanged(self.versions)

    def failed(self, task: Task, failure: Failure) -> Stored:
        """Keep the reason; the same call tries the task again.

        Raises:
            ChangedError: a file of the model is not the one that was hashed: no other task can use it.
        """
        self.refuse_changed(failure)
        self.failures[task.name] = failure.message
        return Stored(failed=(task.name,))

    def refuse_changed(self, failure: Failure) -> None:
        """End the run if a file of the model is not the one that was hashed.

        Raises:
            ChangedError: it is not.
        """
        if failure.changed:
            raise ChangedError(failure.message)

    @abstractmethod
    def report(self) -> Report:
        """Describe the results; called after the run."""

    @property
    def elapsed(self) -> float:
        """Seconds since the work was planned."""
        return (datetime.now(UTC) - self.started_at).total_seconds()

    def write_run(self, run_id: str, method: Mapping[str, object], /, **columns: object) -> None:
        """Write the row of `experiments`, unless a file of the model has changed."""
        self.check_inputs()
        write_run(self.store, run_id, method, self.environment, **{"started_at": self.started_at, **columns})


def write_run(
    store: Store, run_id: str, method: Mapping[str, object], environment: Mapping[str, object], /, **columns: object
) -> None:
    """Write the row of a run in the table `experiments`; columns that are not given are null.

    Raises:
        StoreError: the store is full or cannot be written.
    """
    from scanner.store.tables import rows

    row: dict[str, object] = {
        "run_id": run_id,
        "finished_at": datetime.now(UTC),
        "scanner_version": __version__,
        "method": json.dumps(method, sort_keys=True),
        "environment": json.dumps(environment),
        "files": store.written(run_id),
    }
    store.write_rows("experiments", run_id, rows("experiments", row | columns, 1), method=method)


@dataclass(frozen=True, kw_only=True)
class Experiment(Generic[AnyConfig]):
    """An experiment: its verb on the command line follows from these fields."""

    name: str
    """The verb."""
    config: type[AnyConfig]
    """A frozen dataclass: the options of the verb."""
    plan: Callable[[AnyConfig, Call], ExperimentWork]
    """Makes the work from a configuration."""
    query: str
    """The named query that shows the results."""
    table_parameters: Mapping[str, object] = field(default_factory=dict)
    """Parameters of the query in a table for people, which would otherwise be too long."""
    help: str
    """Title, description and examples, as the help of the verb shows them."""


_REGISTERED: dict[str, Experiment[Any]] = {}


def register_experiment(experiment: Experiment[AnyConfig]) -> Experiment[AnyConfig]:
    """Make an experiment known; called when its module is imported."""
    _REGISTERED[experiment.name] = experiment
    return experiment


def experiments() -> dict[str, Experiment[Any]]:
    """Return all experiments by name: those of the package in one order, however they were imported, then those of extensions."""
    own: list[Experiment[Any]] = [
        importlib.import_module(f"scanner.experiments.{module}").EXPERIMENT for module in _MODULES
    ]
    load_extensions()
    return {experiment.name: experiment for experiment in own} | _REGISTERED


def run_experiment(
    experiment: str | Experiment[AnyConfig],
    config: AnyConfig,
    *,
    store: str = "results",
    pool: PoolOptions | None = None,
    force: bool = False,
    observer: Observer | None = None,
) -> Report:
    """Run an experiment; existing results are reused.

    Args:
        experiment: an experiment or its name.
        config: its configuration.
        store: where the results are written; created if it does not exist.
        pool: where and on how many workers; None: this machine, one worker per core (or GPU).
        force: compute again even if the store has the results.
        observer: receives the progress.

    Raises:
        ScannerError: there is no such experiment; a model, text or parameter is not suitable (the message says why); the
            store cannot be written; there is no worker or no cluster.
        KeyboardInterrupt: interrupted; finished results are in the store, and the same call resumes.
    """
    from scanner.engine.options import PoolOptions
    from scanner.engine.run import run

    if isinstance(experiment, str):
        known = experiments()
        if experiment not in known:
            near = difflib.get_close_matches(experiment, known, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ScannerError(f"there is no experiment {experiment!r}{meant} choose from {', '.join(known)}")
        experiment = known[experiment]
    call = Call(store=store, pool=pool or PoolOptions(), observer=observer or Observer(), force=force)
    work = experiment.plan(config, call)
    run([work], call.pool, call.observer)
    return work.report()


def run_hash(kind: str, identity: str, parameters: Mapping[str, object]) -> str:
    """16 hexadecimal digits that identify a run of this kind, on this content, with these parameters, on every machine."""
    text = json.dumps(
        {"kind": kind, "content": identity, "version": EXPERIMENTS_VERSION, "parameters": dict(parameters)},
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]
