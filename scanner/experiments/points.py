"""Points of a curve: a model measured with something taken out of it, beside itself intact. One point is one file of `ablations`.

What the verbs `ablate` and `slicing` have in common: the actor with its replica, the baseline that all points of a run are compared
with window by window (kept in the run's row, so that points of a later call are compared with the same), and what is written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from scanner.checkpoint import Checkpoint
from scanner.engine import PoolOptions, ScanObserver
from scanner.engine.pool import run_tasks
from scanner.errors import ScannerError
from scanner.experiments.evaluation import Measure, Scores, Summary, summarise
from scanner.experiments.measures import Measurement
from scanner.experiments.models import Head, ModelPlace, Precision
from scanner.experiments.running import Errors, Failure, Resident, rows_table, run_hash
from scanner.experiments.tokens import BATCH_TOKENS, Batches
from scanner.store import Store
from scanner.version import __version__

Kind = Literal["ablation", "slicing"]
#: What the point without removal is called in the column `set`.
NOTHING = "none"


@dataclass(frozen=True, kw_only=True)
class PointTask:
    """Measure a model as it is; subclasses say what is taken out of it first."""

    run_id: str
    point: str
    """Name of the point's file."""
    place: ModelPlace
    head: Head
    dtype: Precision
    measure: Measure
    padding: int

    @property
    def name(self) -> str:
        """The point's file."""
        return self.point

    @property
    def cost(self) -> float:
        """All points cost one evaluation."""
        return 1.0

    @property
    def intact(self) -> bool:
        """Whether nothing is taken out: the baseline."""
        return True

    @property
    def columns(self) -> dict[str, object]:
        """What is taken out, as columns of `ablations`."""
        return {"set": NOTHING}

    @property
    def note(self) -> dict[str, str]:
        """What the file's metadata say beside the run's parameters."""
        return {}

    @property
    def shown(self) -> str:
        """For messages."""
        columns = self.columns
        return " ".join(str(columns[name]) for name in ("roles", "layers", "set") if columns.get(name))


@dataclass(frozen=True, kw_only=True)
class PointOutcome:
    """What came of a point; no scores where there was nothing to take out."""

    scores: Scores | None = None
    removed: int = 0
    total: int = 0
    seconds: float = 0.0
    batch_tokens: int | None = None
    failure: Failure | None = None


class PointWorker(Resident):
    """Base of the actors: one replica of the model, and what the measure remembers of it intact."""

    def __init__(self) -> None:
        super().__init__()
        self._prepared: tuple[str, Batches, Any] | None = None

    def without(self, model: Any, task: Any) -> AbstractContextManager[tuple[int, int]]:
        """The model without what the task takes out, while the context lasts; yields how much of how much that is."""
        raise NotImplementedError

    def get_ready(self, model: Any, task: Any, batches: Batches) -> None:
        """Make what several points share. Raises ScannerError where no point of the run can succeed."""

    def run(self, task: PointTask) -> PointOutcome:
        """Measure a point; errors are outcomes."""
        with self.computing() as started:
            try:
                model = self.model(task.place, task.head, task.dtype)
                if self._prepared is None or self._prepared[0] != task.run_id:
                    batches = Batches(task.padding, BATCH_TOKENS[self._device])
                    self._prepared = (task.run_id, batches, task.measure.prepare(model, batches))
                _, batches, remembered = self._prepared
                if not task.intact:
                    self.get_ready(model, task, batches)
            except ScannerError as error:
                return PointOutcome(failure=Failure(message=str(error), hopeless=True))
            try:
                return self._measure(model, task, remembered, batches, started)
            except Exception as error:  # whatever a point does, the others go on, and a line says what it was
                text = str(error) if isinstance(error, ScannerError) else f"{type(error).__name__}: {error}"
                return PointOutcome(failure=Failure(message=text, hopeless=task.intact))

    def _measure(self, model: Any, task: PointTask, remembered: Any, batches: Batches, started: float) -> PointOutcome:
        scores: Scores | None = None
        removed = total = 0
        if task.intact:
            scores = task.measure.scores(model, remembered, batches)
        else:
            with self.without(model, task) as (removed, total):
                if removed:
                    scores = task.measure.scores(model, remembered, batches)
        return PointOutcome(
            scores=scores,
            removed=removed,
            total=total,
            seconds=time.perf_counter() - started,
            batch_tokens=batches.smallest,
        )


@dataclass(frozen=True, kw_only=True)
class PointReport:
    """What became of a run."""

    run_id: str
    model: str
    revision: str
    store: str
    points: int
    kept: int
    """Points that were there from earlier runs."""
    failed: dict[str, str]
    """Points without a result, and why; the same call tries them again."""


@dataclass(kw_only=True)
class PointRun:
    """A run of points: they wait for the baseline, then each is written at once."""

    kind: Kind
    store: Store
    observer: ScanObserver
    checkpoint: Checkpoint
    place: ModelPlace
    measurement: Measurement
    parameters: dict[str, object]
    """What makes this run another than others: part of its identity."""
    dtype: Precision
    environment: dict[str, Any] = field(default_factory=dict)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _baseline: Scores | None = None
    _waiting: list[tuple[PointTask, PointOutcome]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run_id = run_hash(self.kind, self.checkpoint.identity, self.parameters)
        self._errors = Errors(observer=self.observer)
        self._shared = {
            "run_id": self.run_id,
            "model": self.checkpoint.model,
            "revision": self.checkpoint.revision,
        }
        self.base: dict[str, Any] = {
            "run_id": self.run_id,
            "place": self.place,
            "head": self.measurement.head,
            "dtype": self.dtype,
            "measure": self.measurement.measure,
            "padding": self.measurement.padding,
        }
        self._baseline = self._known_baseline()

    def carry_out(
        self, worker_class: type[PointWorker], tasks: Sequence[PointTask], options: PoolOptions
    ) -> PointReport:
        """Measure the points that are not in the store, and the intact model unless an earlier call did.

        Raises:
            ScannerError: what stands in the way of one point does so for all.
        """
        todo = [task for task in tasks if not self.store.has_rows("ablations", task.point)]
        kept = len(tasks) - len(todo)
        if self._baseline is None:
            todo.insert(0, PointTask(**self.base, point=f"{self.run_id}-{NOTHING}"))
        if todo:
            self.observer.starting(len(todo), float(len(todo)), kept, "points")
            run_tasks(
                worker_class,
                todo,
                options,
                on_start=self.environment.update,
                on_done=self.done,
                on_lost=self.lost,
                on_workers=self.observer.workers,
                on_waiting=self.observer.waiting,
            )
        return PointReport(
            run_id=self.run_id,
            model=self.checkpoint.model,
            revision=self.checkpoint.revision,
            store=self.store.url,
            points=kept + len(todo),
            kept=kept,
            failed=self._errors.messages,
        )

    def done(self, task: PointTask, outcome: PointOutcome) -> None:
        """Write a point, as soon as the baseline is known."""
        if outcome.failure is not None:
            self._errors.add(task.shown, outcome.failure)
            self.observer.task_done(task, failed=[task.name])
            return
        if outcome.batch_tokens is not None:
            self.environment["batch_tokens"] = outcome.batch_tokens
        self._waiting.append((task, outcome))
        if task.intact:
            assert outcome.scores is not None, "the intact model is always measured"
            self._baseline = outcome.scores
            self._write_run(outcome.scores, outcome.seconds)
        if self._baseline is not None:
            for one, its_outcome in self._waiting:
                self._write(one, its_outcome, self._baseline)
                self.observer.task_done(one, failed=[])
            self._waiting.clear()

    def lost(self, task: PointTask, reason: str) -> None:
        """Keep the name of a point that took every worker with it."""
        self._errors.add(task.shown, Failure(message=reason, hopeless=task.intact))
        self.observer.task_done(task, failed=[task.name])

    def _known_baseline(self) -> Scores | None:
        """The baseline of an earlier call."""
        there = self.store.has_rows("experiments", self.run_id)
        if not (there and self.store.has_rows("ablations", f"{self.run_id}-{NOTHING}")):
            return None
        for row in self.store.sql("from experiments").to_pylist():
            if row["run_id"] == self.run_id:
                kept = json.loads(row["environment"])["baseline"]
                return Scores(sums=np.array(kept["sums"]), weights=np.array(kept["weights"]))
        return None

    def _write(self, task: PointTask, outcome: PointOutcome, baseline: Scores) -> None:
        measure = self.measurement.measure
        intact = summarise(measure.metric, baseline)
        if task.intact:
            found = intact
        elif outcome.scores is None:
            found = Summary(value=intact.value, delta=0.0, stderr=0.0)
        else:
            found = summarise(measure.metric, outcome.scores, baseline)
        row = self._shared | {
            "removed": outcome.removed,
            "fraction": outcome.removed / outcome.total if outcome.total else 0.0,
            "metric": measure.metric,
            "dataset": self.measurement.dataset,
            "tokens": measure.tokens,
            "examples": measure.units,
            "baseline": intact.value,
            "value": found.value,
            "delta": found.delta,
            "stderr": found.stderr,
            "seconds": outcome.seconds,
            "finished_at": datetime.now(UTC),
        }
        rows = rows_table("ablations", row | task.columns, 1)
        self.store.write_rows("ablations", task.point, rows, method=self.parameters | task.note)

    def _write_run(self, baseline: Scores, seconds: float) -> None:
        """The run's row, with the baseline window by window."""
        kept = {"sums": baseline.sums.tolist(), "weights": baseline.weights.tolist()}
        row = self._shared | {
            "kind": self.kind,
            "source": self.checkpoint.source,
            "dataset": self.measurement.dataset,
            "started_at": self.started_at,
            "finished_at": datetime.now(UTC),
            "seconds": seconds,
            "tokens": self.measurement.measure.tokens,
            "scanner_version": __version__,
            "method": json.dumps(self.parameters, sort_keys=True),
            "environment": json.dumps(self.environment | {"baseline": kept}),
        }
        self.store.write_rows("experiments", self.run_id, rows_table("experiments", row, 1), method=self.parameters)
