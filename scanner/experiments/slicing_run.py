"""`rmtscan slicing`: points, the actor that measures them, and what is written. One point is one file of `ablations`.

There, `set` is `slice:K` (K the decile of eigenvalues that is left out, 1 the smallest) or `none`, and `roles` says where: `before
norm` or `after norm`; `removed` counts directions over all norms of the model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch

from scanner.checkpoint import Selection
from scanner.engine import PoolOptions, ScanObserver
from scanner.engine.pool import run_tasks
from scanner.errors import ScannerError
from scanner.experiments.evaluation import Measure, Scores, summarise
from scanner.experiments.measures import Measurement, MeasureRequest, measurement
from scanner.experiments.models import Head, ModelPlace, Precision, load_tokenizer, model_place
from scanner.experiments.placing import open_target
from scanner.experiments.running import Errors, Failure, Resident, rows_table, run_hash
from scanner.experiments.slicing import DECILES, ORDERS, Order, bases, decile_slice, sliced
from scanner.experiments.texts import TextSource, read_texts
from scanner.experiments.tokens import BATCH_TOKENS, Batches, Ids, sequences
from scanner.store import Store, open_store
from scanner.version import __version__

KIND, NOTHING = "slicing", "none"
DEFAULT_CALIBRATION = 4096
DEFAULT_LENGTH = 512


@dataclass(frozen=True, kw_only=True)
class SlicingTask:
    """Measure the model without one tenth of the directions at its norms; without a decile, the intact model."""

    run_id: str
    point: str
    """Name of the point's file."""
    place: ModelPlace
    head: Head
    dtype: Precision
    measure: Measure
    padding: int
    calibration: tuple[Ids, ...]
    order: Order = "before"
    decile: int | None = None

    @property
    def name(self) -> str:
        """The point's file."""
        return self.point

    @property
    def cost(self) -> float:
        """All points cost one evaluation."""
        return 1.0

    @property
    def shown(self) -> str:
        """For messages."""
        return NOTHING if self.decile is None else f"{self.order} slice:{self.decile}"


@dataclass(frozen=True, kw_only=True)
class SlicingOutcome:
    """What came of a point."""

    scores: Scores | None = None
    removed: int = 0
    total: int = 0
    seconds: float = 0.0
    failure: Failure | None = None


class SlicingWorker(Resident):
    """An actor with one replica of the model and the bases of one order."""

    def __init__(self) -> None:
        super().__init__()
        self._prepared: tuple[str, Any] | None = None
        self._bases: tuple[tuple[str, Order], dict[str, torch.Tensor]] | None = None

    def run(self, task: SlicingTask) -> SlicingOutcome:
        """Measure a point; errors are outcomes."""
        with self.computing() as started:
            try:
                return self._measure(task, started)
            except Exception as error:  # whatever a point does, the others go on, and a line says what it was
                known = isinstance(error, ScannerError)
                text = str(error) if known else f"{type(error).__name__}: {error}"
                return SlicingOutcome(failure=Failure(message=text, hopeless=known or task.decile is None))

    def _measure(self, task: SlicingTask, started: float) -> SlicingOutcome:
        model = self.model(task.place, task.head, task.dtype)
        batches = Batches(task.padding, BATCH_TOKENS[self._device])
        if self._prepared is None or self._prepared[0] != task.run_id:
            self._prepared = (task.run_id, task.measure.prepare(model, batches))
        if task.decile is None:
            scores = task.measure.scores(model, self._prepared[1], batches)
            return SlicingOutcome(scores=scores, seconds=time.perf_counter() - started)
        if self._bases is None or self._bases[0] != (task.run_id, task.order):
            self._bases = None  # two do not fit
            self._bases = ((task.run_id, task.order), bases(model, task.calibration, batches, task.order))
        found = self._bases[1]
        dropped = {name: basis[:, decile_slice(basis.shape[0], task.decile)] for name, basis in found.items()}
        with sliced(model, dropped, task.order) as removed:
            scores = task.measure.scores(model, self._prepared[1], batches)
        total = sum(basis.shape[0] for basis in found.values())
        return SlicingOutcome(scores=scores, removed=removed, total=total, seconds=time.perf_counter() - started)


@dataclass(frozen=True, kw_only=True)
class SlicingReport:
    """What became of a run."""

    run_id: str
    model: str
    store: str
    points: int
    kept: int
    """Points that were there from earlier runs."""
    failed: dict[str, str]
    """Points without a result, and why; the same call tries them again."""


@dataclass(kw_only=True)
class _Run:
    """Points wait for the intact model, then each is written at once."""

    store: Store
    observer: ScanObserver
    measurement: Measurement
    shared: dict[str, object]
    parameters: dict[str, object]
    source: str
    baseline: Scores | None = None
    waiting: list[tuple[SlicingTask, SlicingOutcome]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.errors = Errors(observer=self.observer)

    def done(self, task: SlicingTask, outcome: SlicingOutcome) -> None:
        """Write a point as soon as the baseline is known."""
        if outcome.failure is not None:
            self.errors.add(task.shown, outcome.failure)
            self.observer.task_done(task, failed=[task.name])
            return
        self.waiting.append((task, outcome))
        if task.decile is None:
            self.baseline = outcome.scores
        if self.baseline is not None:
            for one, its_outcome in self.waiting:
                self._write(one, its_outcome, self.baseline)
                self.observer.task_done(one, failed=[])
            self.waiting.clear()

    def lost(self, task: SlicingTask, reason: str) -> None:
        """Keep the name of a point that took every worker with it."""
        self.errors.add(task.shown, Failure(message=reason, hopeless=task.decile is None))
        self.observer.task_done(task, failed=[task.name])

    def _write(self, task: SlicingTask, outcome: SlicingOutcome, baseline: Scores) -> None:
        measure = self.measurement.measure
        assert outcome.scores is not None, "no failure: there are scores"
        found = summarise(measure.metric, outcome.scores, None if task.decile is None else baseline)
        row = self.shared | {
            "roles": None if task.decile is None else f"{task.order} norm",
            "set": NOTHING if task.decile is None else f"slice:{task.decile}",
            "removed": outcome.removed,
            "fraction": outcome.removed / outcome.total if outcome.total else 0.0,
            "metric": measure.metric,
            "dataset": self.measurement.dataset,
            "tokens": measure.tokens,
            "examples": measure.units,
            "baseline": summarise(measure.metric, baseline).value,
            "value": found.value,
            "delta": found.delta,
            "stderr": found.stderr,
            "seconds": outcome.seconds,
            "finished_at": datetime.now(UTC),
        }
        self.store.write_rows("ablations", task.point, rows_table("ablations", row, 1), method=self.parameters)

    def write_run(self) -> None:
        """The row of `experiments`, which says what the points have in common."""
        row = self.shared | {
            "kind": KIND,
            "source": self.source,
            "dataset": self.measurement.dataset,
            "started_at": self.started_at,
            "finished_at": datetime.now(UTC),
            "seconds": (datetime.now(UTC) - self.started_at).total_seconds(),
            "tokens": self.measurement.measure.tokens,
            "scanner_version": __version__,
            "method": json.dumps(self.parameters, sort_keys=True),
            "environment": json.dumps(self.environment),
        }
        rows = rows_table("experiments", row, 1)
        self.store.write_rows("experiments", str(self.shared["run_id"]), rows, method=self.parameters)


def slicing(
    reference: str,
    wanted: MeasureRequest,
    *,
    orders: Sequence[Order] = ORDERS,
    deciles: Sequence[int] = DECILES,
    calibration: TextSource | None = None,
    calibration_tokens: int = DEFAULT_CALIBRATION,
    store: str = "results",
    dtype: Precision = "float32",
    pool: PoolOptions | None = None,
    observer: ScanObserver | None = None,
) -> SlicingReport:
    """Measure what a model loses when its norms leave out a tenth of the directions of their signal.

    Args:
        reference: the model: a folder, a GGUF file, org/name.
        wanted: what is measured, and on which text.
        orders: project before the norms, after them, or each in turn.
        deciles: which tenths, each a point of its own; 1 has the smallest eigenvalues.
        calibration: the text that the covariances are of; None: the measured one.
        calibration_tokens: how many tokens of it.
        store: where the results go; made if it is not there.
        dtype: precision of the model.
        pool: where and on how many workers.
        observer: told of progress.

    Raises:
        ScannerError: a text, model or decile that does not serve; the message says why.
        KeyboardInterrupt: interrupted; finished points are in the store, and the same call goes on from there.
    """
    observer, options = observer or ScanObserver(), pool or PoolOptions()
    if not set(orders) <= set(ORDERS) or not set(deciles) <= set(DECILES) or not orders or not deciles:
        raise ScannerError(f"orders are {' and '.join(ORDERS)}, deciles 1 to 10; got {[*orders]} and {[*deciles]}")
    observer.opening(reference)
    checkpoint = open_target(reference, Selection()).checkpoint
    place = model_place(checkpoint)
    measured = measurement(place, wanted)
    texts = read_texts(calibration or wanted.text)
    length = wanted.window or DEFAULT_LENGTH
    ids = sequences(load_tokenizer(place), texts, length=length, tokens=calibration_tokens)
    described = {"text": texts.digest, "tokens": calibration_tokens, "length": length}
    parameters: dict[str, object] = measured.parameters | {"dtype": dtype, "calibration": described}
    run_id = run_hash(KIND, checkpoint.identity, parameters)
    base: dict[str, Any] = {
        "run_id": run_id,
        "place": place,
        "head": measured.head,
        "dtype": dtype,
        "measure": measured.measure,
        "padding": measured.padding,
        "calibration": tuple(ids),
    }
    opened = open_store(store, create=True)
    tasks = [
        SlicingTask(**base, point=f"{run_id}-{order}-{decile}", order=order, decile=decile)
        for order in dict.fromkeys(orders)
        for decile in dict.fromkeys(deciles)
    ]
    todo = [task for task in tasks if not opened.has_rows("ablations", task.point)]
    run = _Run(
        store=opened,
        observer=observer,
        measurement=measured,
        shared={"run_id": run_id, "model": checkpoint.model, "revision": checkpoint.revision},
        parameters=parameters,
        source=checkpoint.source,
    )
    if todo:
        # The intact model is measured again when points are added: errors of differences need it window by window.
        todo = [SlicingTask(**base, point=f"{run_id}-{NOTHING}"), *todo]
        observer.starting(len(todo), float(len(todo)), len(tasks) + 1 - len(todo), "points")
        run_tasks(
            SlicingWorker,
            todo,
            options,
            on_start=run.environment.update,
            on_done=run.done,
            on_lost=run.lost,
            on_workers=observer.workers,
            on_waiting=observer.waiting,
        )
        run.write_run()
    return SlicingReport(
        run_id=run_id,
        model=checkpoint.model,
        store=opened.url,
        points=len(tasks),
        kept=sum(task.point not in {one.point for one in todo} for task in tasks),
        failed=run.errors.messages,
    )
