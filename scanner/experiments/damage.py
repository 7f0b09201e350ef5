"""Points of a damage curve: a model is measured with something removed, and compared window by window with the intact model.

`ablate` and `slicing` have this in common. The score of the intact model (the baseline) is kept in the table `baselines`, so
that points of a later call are compared with the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from scanner.engine.task import Context, Task, fatal_errors
from scanner.engine.work import Stored
from scanner.errors import ScannerError
from scanner.experiments.experiment import ExperimentWork, Report, run_hash

if TYPE_CHECKING:
    from scanner.checkpoint import Checkpoint
    from scanner.engine.task import Failure
    from scanner.experiments.nlp.evaluation import Measure, Scores
    from scanner.experiments.nlp.measures import Measurement
    from scanner.experiments.nlp.models import Head, ModelPlace
    from scanner.experiments.nlp.options import Precision
    from scanner.experiments.nlp.removal import Counts
    from scanner.experiments.nlp.tokens import Batches
    from scanner.store import Store

Kind = Literal["ablation", "slicing"]

#: Value of the column `set` for the intact model.
NOTHING = "none"


@dataclass(frozen=True, kw_only=True)
class Point:
    """Result of a point; `scores` is None if there was nothing to remove."""

    scores: Scores | None
    removed: int
    total: int
    energy: float
    """Share of the sum of squares; NaN if singular values are not what is removed."""
    seconds: float
    batch_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class PointTask(Task):
    """Measure the intact model; subclasses say what is removed first."""

    run_id: str
    point: str
    """Name of the file of the point."""
    place: ModelPlace
    head: Head
    dtype: Precision
    config: Any
    """Configuration of the model as transformers reads it, which is slow for some formats."""
    measure: Measure
    padding: int

    @property
    def name(self) -> str:
        """The file of the point."""
        return self.point

    @property
    def shown(self) -> str:
        """Roles, layers and set, for messages."""
        columns = self.columns
        return " ".join(str(columns[name]) for name in ("roles", "layers", "set") if columns.get(name))

    @property
    def cost(self) -> float:
        """Every point costs one evaluation."""
        return 1.0

    @property
    def intact(self) -> bool:
        """Whether nothing is removed: the baseline."""
        return True

    @property
    def columns(self) -> dict[str, object]:
        """Columns of `ablations` that say what is removed."""
        return {"set": NOTHING}

    def prepare(self, context: Context, model: Any, batches: Batches) -> None:
        """Compute what several points share. An error ends the run."""

    def without(self, context: Context, model: Any) -> AbstractContextManager[Counts]:
        """The model without what is removed, inside the context; yields how much of how much was removed."""
        from scanner.experiments.nlp.removal import NO_COUNTS

        return nullcontext(NO_COUNTS)

    def run(self, context: Context) -> Point:
        """Measure the point."""
        from scanner.experiments.nlp.evaluation import require_finite, summarize
        from scanner.experiments.nlp.models import resident_model
        from scanner.experiments.nlp.tokens import BATCH_TOKENS, Batches

        with context.computing() as started:
            with fatal_errors():
                model = resident_model(context, self.place, self.head, self.dtype, self.config)

                def remember() -> tuple[Batches, Any]:
                    batches = Batches(self.padding, BATCH_TOKENS[context.device])
                    return batches, self.measure.prepare(model, batches)

                batches, remembered = context.resident("intact", self.run_id, remember)
                self.prepare(context, model, batches)
            scores: Scores | None = None
            with fatal_errors() if self.intact else nullcontext(), self.without(context, model) as counts:
                if counts.removed or self.intact:
                    scores = self.measure.scores(model, remembered, batches)
            if scores is not None:
                with fatal_errors() if self.intact else nullcontext():
                    require_finite(self.measure.metric, summarize(self.measure.metric, scores).value, model)
            return Point(
                scores=scores,
                removed=counts.removed,
                total=counts.total,
                energy=counts.energy,
                seconds=time.perf_counter() - started,
                batch_tokens=batches.smallest,
            )


class DamageWork(ExperimentWork):
    """A run of points: they wait for the baseline, then each is written when it is measured."""

    unit = "points"

    def __init__(
        self,
        store: Store,
        *,
        kind: Kind,
        checkpoint: Checkpoint,
        place: ModelPlace,
        measurement: Measurement,
        parameters: dict[str, object],
        dtype: Precision,
        force: bool,
    ) -> None:
        """`parameters` distinguish this run from others and are part of its identity."""
        super().__init__(store, force=force)
        self.kind = kind
        self.checkpoint, self.measurement, self.parameters = checkpoint, measurement, parameters
        self.versions = checkpoint.versions
        self.run_id = run_hash(kind, checkpoint.identity, parameters)
        self.base: dict[str, Any] = {
            "run_id": self.run_id,
            "place": place,
            "head": measurement.head,
            "dtype": dtype,
            "config": measurement.config,
            "measure": measurement.measure,
            "padding": measurement.padding,
        }
        self.points: Sequence[PointTask] = ()
        self._shared = {"run_id": self.run_id, "model": checkpoint.model, "revision": checkpoint.revision}
        self._baseline = self._known_baseline()
        self._waiting: list[tuple[PointTask, Point]] = []
        self._total = 0

    @property
    def names(self) -> list[str]:
        """The model."""
        return [self.checkpoint.model]

    def tasks(self) -> list[PointTask]:
        """Points that are not in the store, after the intact model unless an earlier call measured it."""
        found = [task for task in self.points if not self.has("ablations", task.point)]
        self.kept = len(self.points) - len(found)
        if self._baseline is None:
            found.insert(0, PointTask(**self.base, point=self._baseline_point))
        self._total = self.kept + len(found)
        return found

    def done(self, task: Task, value: Point) -> Stored:
        """Write a point as soon as the baseline is known."""
        assert isinstance(task, PointTask)
        self._waiting.append((task, value))
        if task.intact:
            assert value.scores is not None, "the intact model is always measured"
            self._write_baseline(value.scores, value.seconds)
            self._baseline = value.scores
        if self._baseline is not None:
            for one, result in self._waiting:
                self._write(one, result, self._baseline)
            self._waiting.clear()
        return Stored()

    def failed(self, task: Task, failure: Failure) -> Stored:
        """Keep the reason; without the baseline nothing can continue."""
        assert isinstance(task, PointTask)
        self.refuse_changed(failure)
        if task.intact:
            raise ScannerError(failure.message)
        self.failures[task.shown] = failure.message
        return Stored(failed=(task.name,))

    def report(self) -> Report:
        """Describe the points."""
        return Report(
            store=self.store.url,
            run_ids=(self.run_id,),
            unit=self.unit,
            total=self._total,
            kept=self.kept,
            failed=self.failures,
            model=self.checkpoint.model,
            revision=self.checkpoint.revision,
            facts={"measured": self.measurement.described},
            notes=(self.measurement.described,),
            parameters={"run": self.run_id},
        )

    @property
    def _baseline_point(self) -> str:
        return f"{self.run_id}-{NOTHING}"

    def _known_baseline(self) -> Scores | None:
        """The baseline of an earlier call. Until version 0.1.0 it was kept in the column `environment`."""
        import numpy as np

        from scanner.experiments.nlp.evaluation import Scores

        if not self.has("ablations", self._baseline_point):
            return None
        windows = self.store.file_rows("baselines", self.run_id)
        if windows:
            sums, weights = ([window[name] for window in windows] for name in ("sum", "weight"))
            return Scores(sums=np.array(sums), weights=np.array(weights))
        rows = self.store.file_rows("experiments", self.run_id)
        kept = json.loads(str(rows[0]["environment"])).get("baseline") if rows else None
        return None if kept is None else Scores(sums=np.array(kept["sums"]), weights=np.array(kept["weights"]))

    def _write_baseline(self, baseline: Scores, seconds: float) -> None:
        """Write the row of the run, and the baseline by window; the point of the intact model, written last, makes them count."""
        from scanner.store.tables import rows

        count = len(baseline.sums)
        windows = {"run_id": self.run_id, "window": range(count), "sum": baseline.sums, "weight": baseline.weights}
        self.store.write_rows("baselines", self.run_id, rows("baselines", windows, count), method=self.parameters)
        self.write_run(
            self.run_id,
            self.parameters,
            **self._shared,
            kind=self.kind,
            source=self.checkpoint.source,
            dataset=self.measurement.dataset,
            seconds=seconds,
            tokens=self.measurement.measure.tokens,
        )

    def _write(self, task: PointTask, point: Point, baseline: Scores) -> None:
        from scanner.experiments.nlp.evaluation import Summary, summarize
        from scanner.store.tables import rows

        measure = self.measurement.measure
        intact = summarize(measure.metric, baseline)
        if task.intact:
            found = intact
        elif point.scores is None:
            found = Summary(value=intact.value, delta=0.0, stderr=0.0)
        else:
            found = summarize(measure.metric, point.scores, baseline)
        row = self._shared | {
            "removed": point.removed,
            "fraction": point.removed / point.total if point.total else 0.0,
            "energy": point.energy,
            "metric": measure.metric,
            "dataset": self.measurement.dataset,
            "tokens": measure.tokens,
            "examples": measure.units,
            "baseline": intact.value,
            "value": found.value,
            "delta": found.delta,
            "stderr": found.stderr,
            "seconds": point.seconds,
            "batch_tokens": point.batch_tokens,
            "window_sums": [(baseline if point.scores is None else point.scores).sums.tolist()],
            "finished_at": datetime.now(UTC),
        }
        self.store.write_rows("ablations", task.point, rows("ablations", row | task.columns, 1), method=self.parameters)
