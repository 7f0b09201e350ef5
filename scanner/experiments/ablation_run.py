"""`rmtscan ablate`: points of a curve, the actor that measures them, and what is written. One point is one file."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import numpy as np
import torch

from scanner.checkpoint import ROLES, MatrixRef, Selection
from scanner.checkpoint.names import printable
from scanner.engine import PoolOptions, ScanObserver
from scanner.engine.pool import run_tasks
from scanner.errors import ScannerError
from scanner.experiments.evaluation import Measure, Scores, Summary, summarise
from scanner.experiments.measures import Measurement, MeasureRequest, measurement
from scanner.experiments.models import Head, ModelPlace, Precision, model_place
from scanner.experiments.placing import open_target, place_matrices
from scanner.experiments.removal import FactorCache, RemovalSet, parse_sets, removed, size_by_rank
from scanner.experiments.running import Errors, Failure, Resident, rows_table, run_hash
from scanner.experiments.tokens import BATCH_TOKENS, Batches
from scanner.store import Store, open_store
from scanner.version import __version__

By = Literal["role", "layer", "all"]
BYS: tuple[By, ...] = get_args(By)
#: What a run's row of `experiments` and its files in `ablations` are called after, and the point without removal.
KIND, NOTHING = "ablation", "none"


@dataclass(frozen=True, kw_only=True)
class AblationTask:
    """Measure the model without one set of singular values of some matrices; without a set, the intact model."""

    run_id: str
    point: str
    """Name of the point's file."""
    place: ModelPlace
    head: Head
    dtype: Precision
    measure: Measure
    padding: int
    refs: tuple[MatrixRef, ...] = ()
    wanted: RemovalSet | None = None
    roles: str = ""
    layers: str = ""

    @property
    def name(self) -> str:
        """The point's file."""
        return self.point

    @property
    def cost(self) -> float:
        """All points cost one evaluation."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class AblationOutcome:
    """What came of a point; no scores where there was nothing to remove."""

    scores: Scores | None = None
    removed: int = 0
    total: int = 0
    seconds: float = 0.0
    batch_tokens: int | None = None
    failure: Failure | None = None


class AblationWorker(Resident):
    """An actor with one replica of the model, the SVDs of the matrices it has met, and what its measure remembers of it intact."""

    def __init__(self) -> None:
        super().__init__()
        self._cache: FactorCache | None = None
        self._prepared: tuple[str, Any] | None = None
        self._batches: Batches | None = None

    def run(self, task: AblationTask) -> AblationOutcome:
        """Measure a point; errors are outcomes."""
        with self.computing():
            try:
                self._get_ready(task)
            except ScannerError as error:
                return AblationOutcome(failure=Failure(message=str(error), hopeless=True))
            try:
                return self._measure(task)
            except Exception as error:  # whatever a point does, the others go on, and a line says what it was
                text = str(error) if isinstance(error, ScannerError) else f"{type(error).__name__}: {error}"
                return AblationOutcome(failure=Failure(message=text, hopeless=task.wanted is None))

    def _get_ready(self, task: AblationTask) -> None:
        model = self.model(task.place, task.head, task.dtype)
        if self._prepared is None or self._prepared[0] != task.run_id:
            self._cache = FactorCache(memory_for_factors(self._device))
            self._batches = Batches(task.padding, BATCH_TOKENS[self._device])
            self._prepared = (task.run_id, task.measure.prepare(model, self._batches))

    def _measure(self, task: AblationTask) -> AblationOutcome:
        assert self._cache is not None and self._batches is not None and self._prepared is not None, "made ready"  # noqa: PT018
        started = time.perf_counter()
        model = self.model(task.place, task.head, task.dtype)
        gone = total = 0
        if task.wanted is None:
            scores = task.measure.scores(model, self._prepared[1], self._batches)
        else:
            placed, unplaced = place_matrices(model, task.refs)
            if unplaced:
                name, why = next(iter(unplaced.items()))
                raise ScannerError(f"{len(unplaced)} matrices cannot be changed, {printable(name)} among them: {why}")
            with removed(model, placed, task.wanted, self._cache) as (gone, total):
                if gone == 0:
                    return AblationOutcome(total=total, seconds=time.perf_counter() - started)
                scores = task.measure.scores(model, self._prepared[1], self._batches)
        return AblationOutcome(
            scores=scores,
            removed=gone,
            total=total,
            seconds=time.perf_counter() - started,
            batch_tokens=self._batches.smallest,
        )


def memory_for_factors(device: str) -> int:
    """Bytes that an actor may keep SVDs in: half of what a GPU has free, or its core's share of half of the machine's memory."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0]) // 2
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(memory // (2 * (os.cpu_count() or 1)))


@dataclass(frozen=True, kw_only=True)
class AblationReport:
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
class _Run:
    """The state of a run: points wait for the baseline, then each is written at once."""

    store: Store
    observer: ScanObserver
    measurement: Measurement
    shared: dict[str, object]
    parameters: dict[str, object]
    source: str
    baseline: Scores | None = None
    waiting: list[tuple[AblationTask, AblationOutcome]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.errors = Errors(observer=self.observer)

    def done(self, task: AblationTask, outcome: AblationOutcome) -> None:
        """Write a point, as soon as the baseline is known."""
        if outcome.failure is not None:
            self.errors.add(_shown(task), outcome.failure)
            self.observer.task_done(task, failed=[task.name])
            return
        if outcome.batch_tokens is not None:
            self.environment["batch_tokens"] = outcome.batch_tokens
        self.waiting.append((task, outcome))
        if task.wanted is None:
            assert outcome.scores is not None, "the intact model is always measured"
            self.baseline = outcome.scores
            self._write_run(outcome.scores, outcome.seconds)
        if self.baseline is not None:
            for one, its_outcome in self.waiting:
                self._write(one, its_outcome, self.baseline)
                self.observer.task_done(one, failed=[])
            self.waiting.clear()

    def lost(self, task: AblationTask, reason: str) -> None:
        """Keep the name of a point that took every worker with it."""
        self.errors.add(_shown(task), Failure(message=reason, hopeless=task.wanted is None))
        self.observer.task_done(task, failed=[task.name])

    def _write(self, task: AblationTask, outcome: AblationOutcome, baseline: Scores) -> None:
        measure = self.measurement.measure
        intact = summarise(measure.metric, baseline)
        if task.wanted is None:
            found = intact
        elif outcome.scores is None:
            found = Summary(value=intact.value, delta=0.0, stderr=0.0)
        else:
            found = summarise(measure.metric, outcome.scores, baseline)
        row = self.shared | {
            "roles": task.roles,
            "layers": task.layers,
            "set": task.wanted.name if task.wanted is not None else NOTHING,
            "removed": outcome.removed,
            "fraction": outcome.removed / outcome.total if outcome.total else 0.0,
            "seed": task.wanted.seed if task.wanted is not None else None,
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
        beside = {"beside": task.wanted.beside} if task.wanted is not None and task.wanted.beside else {}
        rows = rows_table("ablations", row, 1)
        self.store.write_rows("ablations", task.point, rows, method=self.parameters | beside)

    def _write_run(self, baseline: Scores, seconds: float) -> None:
        """The run's row, with the baseline window by window: what later points are compared with."""
        kept = {"sums": baseline.sums.tolist(), "weights": baseline.weights.tolist()}
        row = self.shared | {
            "kind": KIND,
            "source": self.source,
            "dataset": self.measurement.dataset,
            "started_at": self.started_at,
            "finished_at": datetime.now(UTC),
            "seconds": seconds,
            "tokens": self.measurement.measure.tokens,
            "scanner_version": __version__,
            "method": json.dumps(self.parameters, sort_keys=True),
            "environment": json.dumps(self.environment | {"baseline": kept}),
        }
        self.store.write_rows(
            "experiments", str(self.shared["run_id"]), rows_table("experiments", row, 1), method=self.parameters
        )


def ablate(
    reference: str,
    wanted: MeasureRequest,
    *,
    roles: Sequence[str] = (),
    layers: Sequence[int] = (),
    by: By = "role",
    sets: str = "deciles",
    random_sets: int = 1,
    store: str = "results",
    dtype: Precision = "float32",
    pool: PoolOptions | None = None,
    observer: ScanObserver | None = None,
) -> AblationReport:
    """Measure what a model loses when sets of singular values are taken out of its weights, each beside a random set.

    Args:
        reference: the model: a folder, a GGUF file, org/name.
        wanted: what is measured, and on which text.
        roles: roles whose matrices are changed; none: all that stand in the blocks.
        layers: blocks whose matrices are changed; none: all.
        by: one point for each role (in all these blocks), for each block (all these roles), or for all matrices at once.
        sets: as `removal.parse_sets`.
        random_sets: random sets beside each one.
        store: where the results go; made if it is not there.
        dtype: precision of the model.
        pool: where and on how many workers.
        observer: told of progress.

    Raises:
        ScannerError: a text, model, role, layer or set that does not serve; the message says why.
        KeyboardInterrupt: interrupted; finished points are in the store, and the same call goes on from there.
    """
    observer, options = observer or ScanObserver(), pool or PoolOptions()
    if random_sets < 0:
        raise ScannerError(f"the number of random sets cannot be negative, got {random_sets}")
    chosen = parse_sets(sets, random_sets)
    observer.opening(reference)
    target = open_target(reference, Selection(only=tuple(roles), layers=tuple(layers)))
    checkpoint = target.checkpoint
    refs = [ref for ref in target.inventory.matrices if ref.layer is not None]
    if not refs:
        raise ScannerError(f"{printable(checkpoint.model)} has no matrix of these roles in a block")
    place = model_place(checkpoint)
    measured = measurement(place, wanted)
    parameters = measured.parameters | {"dtype": dtype}
    run_id = run_hash(KIND, checkpoint.identity, parameters)
    opened = open_store(store, create=True)
    run = _Run(
        store=opened,
        observer=observer,
        measurement=measured,
        shared={"run_id": run_id, "model": checkpoint.model, "revision": checkpoint.revision},
        parameters=parameters,
        source=checkpoint.source,
        baseline=_known_baseline(opened, run_id),
    )
    base: dict[str, Any] = {
        "run_id": run_id,
        "place": place,
        "head": measured.head,
        "dtype": dtype,
        "measure": measured.measure,
        "padding": measured.padding,
    }
    tasks = _points(base, refs, by, chosen)
    todo = [task for task in tasks if not opened.has_rows("ablations", task.point)]
    if run.baseline is None:
        nothing = AblationTask(**base, point=f"{run_id}-{NOTHING}")
        tasks, todo = [nothing, *tasks], [nothing, *todo]
    if todo:
        observer.starting(len(todo), float(len(todo)), len(tasks) - len(todo), "points")
        run_tasks(
            AblationWorker,
            todo,
            options,
            on_start=run.environment.update,
            on_done=run.done,
            on_lost=run.lost,
            on_workers=observer.workers,
            on_waiting=observer.waiting,
        )
    return AblationReport(
        run_id=run_id,
        model=checkpoint.model,
        revision=checkpoint.revision,
        store=opened.url,
        points=len(tasks),
        kept=len(tasks) - len(todo),
        failed=run.errors.messages,
    )


def _shown(task: AblationTask) -> str:
    return f"{task.roles} {task.layers} {task.wanted.name if task.wanted is not None else NOTHING}".strip()


def _known_baseline(store: Store, run_id: str) -> Scores | None:
    """The baseline of an earlier call, if its points are to be compared with it."""
    if not (store.has_rows("experiments", run_id) and store.has_rows("ablations", f"{run_id}-{NOTHING}")):
        return None
    for row in store.sql("from experiments").to_pylist():
        if row["run_id"] == run_id:
            kept = json.loads(row["environment"])["baseline"]
            return Scores(sums=np.array(kept["sums"]), weights=np.array(kept["weights"]))
    return None


def _points(base: dict[str, Any], refs: Sequence[MatrixRef], by: By, sets: Sequence[RemovalSet]) -> list[AblationTask]:
    """One task for each group of matrices and set; random sets of equal sizes are one."""
    groups: dict[tuple[str, int], list[MatrixRef]] = {}
    for ref in sorted(refs, key=lambda ref: (ref.stack or "", ref.layer or 0, ROLES.index(ref.role))):
        of_role, of_layer = ("", ROLES.index(ref.role)), (ref.stack or "", ref.layer or 0)
        groups.setdefault({"role": of_role, "layer": of_layer, "all": ("", 0)}[by], []).append(ref)
    found: dict[str, AblationTask] = {}
    for key in sorted(groups):
        group = groups[key]
        roles = ",".join(sorted({ref.role for ref in group}, key=ROLES.index))
        layers = _layers(group)
        for wanted in sets:
            what: object = wanted.name
            if wanted.beside is not None:
                sizes = [size_by_rank(wanted.beside, min(ref.rows, ref.cols)) for ref in group]
                what = [wanted.name, wanted.beside if None in sizes else sizes]
            identity = json.dumps([sorted(ref.key for ref in group), what])
            point = f"{base['run_id']}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
            found.setdefault(
                point,
                AblationTask(**base, point=point, refs=tuple(group), wanted=wanted, roles=roles, layers=layers),
            )
    return list(found.values())


def _layers(refs: Sequence[MatrixRef]) -> str:
    """`0-5` or `0,3-4`, with the stack before it where models have several: `encoder:0-5`."""
    texts = []
    for stack in dict.fromkeys(ref.stack for ref in refs):
        layers = sorted({ref.layer for ref in refs if ref.stack == stack and ref.layer is not None})
        runs: list[list[int]] = []
        for layer in layers:
            if runs and layer == runs[-1][1] + 1:
                runs[-1][1] = layer
            else:
                runs.append([layer, layer])
        text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
        texts.append(f"{stack}:{text}" if stack is not None else text)
    return " ".join(texts)
