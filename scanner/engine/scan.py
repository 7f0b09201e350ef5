"""Scanning checkpoints: one queue and one pool of workers for all, results staged at once, models committed whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from scanner.checkpoint import Checkpoint, Inventory, list_matrices, open_checkpoint
from scanner.engine import rows
from scanner.engine.method import Method, scan_id
from scanner.engine.plan import ControlTask, MatrixTask, Task, control_tasks, largest_first, reads
from scanner.engine.pool import PoolOptions, run_tasks
from scanner.engine.worker import Outcome, Worker
from scanner.errors import CheckpointError, ScannerError
from scanner.rmt.ensembles import ENSEMBLES, Ensemble
from scanner.store import ScanWriter, Store, open_store
from scanner.version import __version__

#: Bytes of neighbouring weights that one request may fetch together where the checkpoint is on the other side of a network.
REMOTE_NEIGHBOURS = 32 << 20


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """What became of one reference: the three counts add up to the tensors of the checkpoint, slices counted as one each."""

    reference: str
    model: str = ""
    revision: str = ""
    scan_id: str = ""
    analysed: int = 0
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """Reason to the tensors that were skipped for it."""
    failed: int = 0
    new: bool = True
    """False when the store had this scan already."""
    error: ScannerError | None = None
    """Why the reference could not be scanned at all."""

    @property
    def skipped_count(self) -> int:
        """Number of skipped tensors."""
        return sum(len(names) for names in self.skipped.values())


@dataclass(frozen=True, kw_only=True)
class ScanReport:
    """What became of every reference of one command, in the order in which they were named."""

    store: str
    models: tuple[ModelReport, ...]

    @property
    def failed(self) -> int:
        """Tensors that failed, over all models."""
        return sum(model.failed for model in self.models)

    @property
    def errors(self) -> tuple[ModelReport, ...]:
        """The references that could not be scanned."""
        return tuple(model for model in self.models if model.error is not None)


class ScanObserver:
    """Follows a scan as it goes on; every method does nothing unless overridden."""

    def opening(self, reference: str) -> None:
        """A checkpoint is being opened: its headers read, its files hashed."""

    def starting(self, items: int, cost: float, kept: int, what: str = "matrices and controls") -> None:
        """The queue is complete, with so many of `what`; `kept` are there from an earlier run that was not finished."""

    def workers(self, alive: int, wanted: int) -> None:
        """A worker came up or was lost."""

    def waiting(self, reason: str) -> None:
        """There is no worker, and nothing happens until one comes up."""

    def dispatching(self) -> None:
        """The first worker is ready: the steady state begins."""

    def task_done(self, task: Task, *, failed: list[str]) -> None:
        """The results of a task are in the store; `failed` holds the keys of the matrices that failed."""

    def model_done(self, model: ModelReport) -> None:
        """A model is committed, was there already, or cannot be scanned."""


@dataclass(kw_only=True)
class _Job:
    """One checkpoint on its way to a committed scan."""

    references: list[str]  # more than one where several names lead to the same content
    checkpoint: Checkpoint
    inventory: Inventory
    scan_id: str
    writer: ScanWriter
    todo: set[str]  # keys of the matrices without a result
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def skipped(self) -> dict[str, list[str]]:
        reasons: dict[str, list[str]] = {}
        for tensor in self.inventory.skipped:
            reasons.setdefault(tensor.reason, []).append(tensor.tensor)
        return reasons


class ScanRun:
    """The state of one run: jobs by scan, and what to do with each outcome."""

    def __init__(self, store: Store, method: Method, observer: ScanObserver) -> None:
        self.store, self.method, self.observer = store, method, observer
        self.jobs: dict[str, _Job] = {}
        self.reports: dict[str, ModelReport] = {}
        self.shapes: set[tuple[int, int]] = set()
        self.environment: dict[str, Any] = {}

    def add(self, reference: str, *, force: bool, download: bool) -> None:
        """Open a reference and queue what it lacks; an error that concerns only this reference is kept in its report."""
        self.observer.opening(reference)
        try:
            checkpoint = open_checkpoint(reference, download=download)
        except CheckpointError as error:
            self._report(ModelReport(reference=reference, error=error))
            return
        self.add_opened(reference, checkpoint, force=force)

    def add_opened(self, reference: str, checkpoint: Checkpoint, *, force: bool) -> None:
        """Queue what an opened checkpoint lacks."""
        try:
            inventory = list_matrices(checkpoint, self.method.selection)
            if not inventory.matrices:
                raise CheckpointError(nothing_to_scan(checkpoint, inventory))
        except CheckpointError as error:
            self._report(ModelReport(reference=reference, error=error))
            return
        identity = scan_id(checkpoint.identity, self.method)
        self.shapes.update((ref.rows, ref.cols) for ref in inventory.matrices)
        committed = self.store.scan_row(identity)
        if committed is not None and not force:
            self._report(_report_of_row(reference, committed))
            return
        if identity in self.jobs:
            self.jobs[identity].references.append(reference)
            return
        writer = self.store.writer(identity, method=self.method.as_dict(), model=checkpoint.model)
        if force:
            writer.discard()
        todo = {ref.key for ref in inventory.matrices} - writer.staged()
        self.jobs[identity] = _Job(
            references=[reference],
            checkpoint=checkpoint,
            inventory=inventory,
            scan_id=identity,
            writer=writer,
            todo=todo,
        )

    def tasks(self, ensembles: Iterable[Ensemble]) -> list[MatrixTask | ControlTask]:
        """Everything without a result, largest first."""
        found: list[MatrixTask | ControlTask] = [
            task
            for task in control_tasks(self.shapes, ensembles)
            if not self.store.has_control(task.rows, task.cols, task.ensemble, task.seed)
        ]
        for job in self.jobs.values():
            place = {
                "model": job.checkpoint.model,
                "revision": job.checkpoint.revision,
                "source": job.checkpoint.source,
            }
            todo = [ref for ref in job.inventory.matrices if ref.key in job.todo]
            neighbours = REMOTE_NEIGHBOURS if "://" in job.checkpoint.source else 0
            found += [
                MatrixTask(scan_id=job.scan_id, refs=refs, sigma=self.method.sigma, null=self.method.null, **place)
                for refs in reads(todo, neighbours=neighbours)
            ]
        return largest_first(found)

    def begin(self, environment: dict[str, Any]) -> None:
        """Ray is there: what an earlier run left complete but for the commit is committed before new work begins."""
        self.environment = environment
        self.commit_complete()
        # pyarrow looks for pandas at its first Python list: now, while the workers start, and not between last matrix and commit.
        pa.array([0])

    def carry_out(self, tasks: Sequence[MatrixTask | ControlTask], options: PoolOptions) -> None:
        """Run the tasks on Ray, which is not started when there are none, and commit what is complete."""
        if not tasks:
            self.commit_complete()
            return
        self.observer.starting(sum(work_items(task) for task in tasks), sum(task.cost for task in tasks), self.kept())
        run_tasks(
            Worker,
            tasks,
            options,
            on_start=self.begin,
            on_done=self.done,
            on_lost=self.lost,
            on_workers=_FirstWorker(self.observer),
            on_waiting=self.observer.waiting,
        )

    def kept(self) -> int:
        """Matrices whose results an earlier run left behind."""
        return sum(len(job.inventory.matrices) - len(job.todo) for job in self.jobs.values())

    def done(self, task: MatrixTask | ControlTask, outcome: Outcome) -> None:
        """Store the rows of a task; the last one of a model commits it."""
        if isinstance(task, ControlTask):
            assert outcome.controls is not None, "a control's outcome is its rows"
            self.store.write_control(rows.unpack(outcome.controls), task.rows, task.cols, task.ensemble, task.seed)
            self.observer.task_done(task, failed=[])
            return
        job = self.jobs[task.scan_id]
        failed = []
        for result in outcome.results:
            if result.failure:
                job.writer.stage_failure(result.key, rows.unpack(result.failure))
                failed.append(result.key)
            else:
                job.writer.stage_part(result.key, result.part)
        self._finish(job, task, failed)

    def lost(self, task: MatrixTask | ControlTask, reason: str) -> None:
        """Record a matrix that took every worker with it."""
        if isinstance(task, ControlTask):
            self.observer.task_done(task, failed=[task.name])  # a control is missing, and no model is the worse for it
            return
        job = self.jobs[task.scan_id]
        for ref in task.refs:
            row = rows.failure_row(task, ref, stage="analyse", error="WorkerLost", message=reason)
            job.writer.stage_failure(ref.key, row)
        self._finish(job, task, [ref.key for ref in task.refs])

    def commit_complete(self) -> None:
        """Commit the jobs that an earlier run left complete but for the commit."""
        for job in list(self.jobs.values()):
            if not job.todo:
                self._commit(job)

    def _finish(self, job: _Job, task: MatrixTask, failed: list[str]) -> None:
        job.todo -= {ref.key for ref in task.refs}
        self.observer.task_done(task, failed=failed)
        if not job.todo:
            self._commit(job)

    def _commit(self, job: _Job) -> None:
        checkpoint, finished_at = job.checkpoint, datetime.now(UTC)
        job.writer.commit(
            {
                "scan_id": job.scan_id,
                "model": checkpoint.model,
                "revision": checkpoint.revision,
                "source": checkpoint.source,
                "format": checkpoint.format,
                "architecture": checkpoint.architecture,
                "base_model": checkpoint.base_model,
                "parameters": checkpoint.parameters,
                "dtype": checkpoint.dtype,
                "started_at": job.started_at,
                "finished_at": finished_at,
                "skipped": len(job.inventory.skipped),
                "skipped_tensors": json.dumps(job.skipped),
                "identity": checkpoint.identity,
                "scanner_version": __version__,
                "method": json.dumps(self.method.as_dict()),
                "environment": json.dumps(self.environment),
            },
            clean_up=False,  # many small files: nobody needs to wait for that
        )
        row = self.store.scan_row(job.scan_id)
        assert row is not None, "a committed scan can be read"
        for reference in job.references:
            self._report(_report_of_row(reference, row, new=True))
        job.writer.clean_up()

    def _report(self, report: ModelReport) -> None:
        self.reports[report.reference] = report
        self.observer.model_done(report)


def work_items(task: MatrixTask | ControlTask) -> int:
    """Matrices and controls that a task is about."""
    return len(task.refs) if isinstance(task, MatrixTask) else 1


def nothing_to_scan(checkpoint: Checkpoint, inventory: Inventory) -> str:
    """One line that says why a checkpoint has no matrix to analyse."""
    reasons: dict[str, int] = {}
    for tensor in inventory.skipped:
        reasons[tensor.reason] = reasons.get(tensor.reason, 0) + 1
    told = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))
    return f"{checkpoint.model}: no matrix to analyse among its {len(inventory.skipped)} tensors ({told})"


def _report_of_row(reference: str, row: dict[str, Any], *, new: bool = False) -> ModelReport:
    return ModelReport(
        reference=reference,
        model=row["model"],
        revision=row["revision"] or "",
        scan_id=row["scan_id"],
        analysed=row["matrices"],
        skipped=json.loads(row["skipped_tensors"] or "{}"),
        failed=row["failed"],
        new=new,
    )


class _FirstWorker:
    """Tells the observer of the workers, and once that work begins."""

    def __init__(self, observer: ScanObserver) -> None:
        self._observer, self._begun = observer, False

    def __call__(self, alive: int, wanted: int) -> None:
        self._observer.workers(alive, wanted)
        if alive and not self._begun:
            self._begun = True
            self._observer.dispatching()


def scan(
    references: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    store: str | os.PathLike[str] = "results",
    method: Method | None = None,
    ensembles: Sequence[Ensemble] = ENSEMBLES,
    pool: PoolOptions | None = None,
    force: bool = False,
    download: bool = False,
    observer: ScanObserver | None = None,
) -> ScanReport:
    """Scan checkpoints into a store, on a local Ray or a running cluster; what is there already is not done again.

    Args:
        references: one or more checkpoints: a folder or file, `org/name[@revision]`, a URL, `delta:BASE..TUNED`.
        store: where the results go; made if it is not there.
        method: what is computed; None: the defaults of `Method`.
        ensembles: random controls, one for each distinct shape.
        pool: where and on how many workers; None: this machine, a worker a core (or GPU).
        force: scan again what the store already holds.
        download: take whole files of the Hub into its cache, instead of reading byte ranges of them.
        observer: told of progress.

    Returns:
        What became of every reference. One that cannot be opened has its error there and does not stop the others.

    Raises:
        ScannerError: nothing can go on: a store that cannot be written, no worker, no cluster.
        KeyboardInterrupt: interrupted; finished matrices are in the store, and the same call goes on from there.
    """
    named = [references] if isinstance(references, str | os.PathLike) else references
    unique = list(dict.fromkeys(os.fspath(reference) for reference in named))
    observer, options = observer or ScanObserver(), pool or PoolOptions()
    unknown = [ensemble for ensemble in ensembles if ensemble not in ENSEMBLES]
    if unknown:
        raise ScannerError(f"unknown ensemble {unknown[0]!r}: it is one of {', '.join(ENSEMBLES)}")
    target = open_store(os.fspath(store), create=True)
    run = ScanRun(target, method or Method(), observer)
    for reference in unique:
        run.add(reference, force=force, download=download)
    run.carry_out(run.tasks(ensembles), options)
    return ScanReport(store=target.url, models=tuple(run.reports[reference] for reference in unique))
