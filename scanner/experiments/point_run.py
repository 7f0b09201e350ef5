"""A run of points: which are measured, what they are compared with, and what is written. One point is one file of `ablations`.

What the verbs `ablate` and `slicing` have in common. All points of a run are compared, window by window, with the intact model;
that baseline is kept in the run's row, so that points of a later call are compared with the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from scanner.checkpoint import Checkpoint
from scanner.engine import PoolOptions, ScanObserver
from scanner.engine.pool import run_tasks
from scanner.experiments.evaluation import Scores, Summary, summarise
from scanner.experiments.measures import Measurement
from scanner.experiments.models import ModelPlace, Precision
from scanner.experiments.point_task import NOTHING, PointOutcome, PointTask, PointWorker
from scanner.experiments.running import Errors, Failure, rows_table, run_hash
from scanner.store import Store
from scanner.version import __version__

Kind = Literal["ablation", "slicing"]


@dataclass(frozen=True, kw_only=True)
class PointReport:
    """What became of a run."""

    run_id: str
    model: str
    revision: str
    store: str
    measured: str
    """What was measured, and on what."""
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
            "config": self.measurement.config,
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
                family=lambda task: task.family,
            )
        return PointReport(
            run_id=self.run_id,
            model=self.checkpoint.model,
            revision=self.checkpoint.revision,
            store=self.store.url,
            measured=self.measurement.described,
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
        rows = self.store.file_rows("experiments", self.run_id)
        if not (rows and self.store.has_rows("ablations", f"{self.run_id}-{NOTHING}")):
            return None
        kept = json.loads(str(rows[0]["environment"]))["baseline"]
        return Scores(sums=np.array(kept["sums"]), weights=np.array(kept["weights"]))

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
        # The run's row may be older than this point: that batches were cut down stands beside the point itself.
        smaller = {} if outcome.batch_tokens is None else {"batch_tokens": outcome.batch_tokens}
        self.store.write_rows("ablations", task.point, rows, method=self.parameters | task.note | smaller)

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
