"""Scanning checkpoints: one queue and one pool of workers for all models; each model is committed as soon as it is complete.

References are opened by threads, ahead of the workers (see `scanner.engine.ahead`), and only as many as the workers need soon. What
belongs to a model is released when it is committed, so the memory of the driver does not grow with the number of models.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import pyarrow as pa

from scanner.checkpoint import (
    Checkpoint,
    Inventory,
    MatrixRef,
    list_matrices,
)
from scanner.checkpoint.metadata import initializer_range
from scanner.checkpoint.names import MAX_SHOWN, printable
from scanner.checkpoint.sources.files import FileVersion, check_unchanged
from scanner.engine import rows
from scanner.engine.ahead import Hasher, Opened, Opener, nothing_to_scan, open_reference
from scanner.engine.controls import ControlQueue
from scanner.engine.method import Method, scan_id
from scanner.engine.options import PoolOptions
from scanner.engine.plan import (
    largest_first,
    reads,
)
from scanner.engine.report import ModelReport, ScanReport
from scanner.engine.run import run
from scanner.engine.task import Failure, Task
from scanner.engine.tasks import (
    ControlTask,
    MatrixControlTask,
    MatrixTask,
    TieTask,
    control_tasks,
    versions_read,
    warm_up,
)
from scanner.engine.work import Found, Observer, Stored, Work
from scanner.errors import ChangedError, CheckpointError, ConfigError, ScannerError
from scanner.rmt.ensembles import ENSEMBLES, MATRIX_ENSEMBLES, Ensemble
from scanner.rmt.vocabulary import ScaleKind, SigmaKind
from scanner.store import ScanWriter, Store, open_store
from scanner.store.references import DIFFERENCE
from scanner.store.tables import MATRIX_KEY, lists_of_text
from scanner.version import __version__

#: Bytes of neighboring weights that one request may fetch together if the checkpoint is on a network.
REMOTE_NEIGHBORS = 32 << 20
#: The seed of all controls: they are stored by shape and shared by all scans.
CONTROL_SEED = 0
_DEFAULT_SIGMA: SigmaKind = "median"
_DEFAULT_SCALE: ScaleKind = "robust"
#: Models that are scanned at the same time; more if there are many workers. Every one of them takes memory for its inventory.
_MODELS_AT_ONCE, _MODELS_PER_WORKER = 64, 4
#: Matrices without a result, of all models that are scanned at the same time, above which no further model is begun.
_MATRICES_AT_ONCE = 100_000
#: Seconds for which further checkpoints are opened before Ray starts, which takes seconds itself: the more matrices are known, the
#: better is their order.
_GATHER_SECONDS = 0.5


@dataclass(kw_only=True)
class _Job:
    """One checkpoint that is being scanned."""

    references: list[str]  # more than one if several names lead to the same content
    checkpoint: Checkpoint
    inventory: Inventory
    scan_id: str  # of the staged rows; provisional if the content was not hashed when the first of them was staged
    final: str  # of the committed scan; empty while it is not known
    writer: ScanWriter
    todo: set[str]  # keys of the matrices without a result
    force: bool = False
    waiting: set[str] = field(default_factory=set)  # those of them that may be copies of others
    committed: bool = False
    broken: bool = False  # nothing can be committed, and the reports say why
    changed: set[FileVersion] = field(default_factory=set)  # files that are no longer what was hashed
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def skipped(self) -> dict[str, list[str]]:
        reasons: dict[str, list[str]] = {}
        for tensor in self.inventory.skipped:
            reasons.setdefault(tensor.reason, []).append(tensor.tensor)
        return reasons


class ScanWork(Work):
    """Scans of several models: one job per content, and what to do with each result."""

    kind = "scan"
    mixes = True
    unit = "matrices and controls"
    start = staticmethod(warm_up)

    def __init__(
        self,
        store: Store,
        method: Method,
        observer: Observer,
        ensembles: Sequence[Ensemble] = ENSEMBLES,
        *,
        draws: int = 1,
        references: Iterator[str] | None = None,
        force: bool = False,
        download: bool = False,
        strict: bool = False,
        name: str | None = None,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            store: where the results are written.
            method: what is computed.
            observer: receives the progress.
            ensembles: random controls.
            draws: number of draws of each control.
            references: checkpoints that are opened while the work runs; others are added with `add`.
            force: scan `references` again even if the store has the results.
            download: download whole files of `references` from the Hub.
            strict: a model that cannot be scanned ends the run with an error, because other work needs its scan.
            name: name of the model of `references`; None: its own.
        """
        self.store, self.method, self.observer, self.ensembles = store, method, observer, ensembles
        self.jobs: dict[str, _Job] = {}
        self.reports: dict[str, ModelReport] = {}
        self.draws = draws
        self.environment: dict[str, Any] = {}
        self.strict, self.force = strict, force
        self._opener: Opener | None = None
        if references is not None:
            selection = self.method.selection
            self._opener = Opener(
                references, lambda named: open_reference(named, selection, download=download, name=name)
            )
        self._hasher = Hasher()
        self._beside: dict[str, tuple[str, ...]] = {}
        self._listed: set[str] | None = None
        self._staging: set[str] | None = None
        self._finished: dict[str, ModelReport] = {}  # scans that this run has committed
        self._fresh: list[_Job] = []  # jobs whose tasks nobody has yet
        self._shapes: set[tuple[int, int]] = set()  # of new checkpoints
        self._controlled: set[tuple[int, int]] = set()  # whose controls are in the store, or in the queue
        self._kept: list[tuple[str, Checkpoint, Inventory]] = []  # opened, and their scans are in the store
        self._controls = ControlQueue(store, method, ensembles, draws)

    @property
    def names(self) -> list[str]:
        """The models that are being scanned."""
        return [job.checkpoint.model for job in self.jobs.values()]

    def add(self, reference: str, *, force: bool, download: bool) -> None:
        """Open a reference and queue what it lacks; an error that concerns only this reference is kept in its report."""
        self.observer.opening(reference)
        self._add(open_reference(reference, self.method.selection, download=download), force=force)

    def add_opened(self, reference: str, checkpoint: Checkpoint, *, force: bool) -> None:
        """Queue what an opened checkpoint lacks."""
        inventory, error = None, None
        try:
            inventory = list_matrices(checkpoint, self.method.selection, compare_bytes=False)
            if not inventory.matrices:
                raise CheckpointError(nothing_to_scan(checkpoint, inventory))
        except CheckpointError as raised:
            error = raised
        self._add(Opened(reference=reference, checkpoint=checkpoint, inventory=inventory, error=error), force=force)

    def _add(self, opened: Opened, *, force: bool) -> None:
        reference, checkpoint, inventory = opened.reference, opened.checkpoint, opened.inventory
        if checkpoint is not None:
            self._beside[reference] = checkpoint.beside
        if checkpoint is None or inventory is None or opened.error is not None:
            self._report(ModelReport(reference=reference, error=opened.error))
            return
        self._shapes.update((ref.rows, ref.cols) for ref in inventory.matrices if ref.factors is None)
        final = scan_id(checkpoint.identity, self.method) if checkpoint.identity else ""
        provisional = f"provisional-{scan_id(checkpoint.provisional, self.method)}" if checkpoint.provisional else ""
        retry = False
        if final:
            if self._has_reported(final, [reference]):
                self._drop_provisional(provisional)
                return
            found, retry = self._stored(final, force=force)
            if found is not None:
                if self._controls.ensembles:
                    self._kept.append((final, checkpoint, inventory))
                self._report(_report_of_row(reference, found))
                self._drop_provisional(provisional)
                return
        # An earlier run may have staged parts before it knew the content: they count for this one.
        resumes = bool(final and provisional) and not force and not retry and provisional in self._begun()
        own = final if final and not resumes else provisional
        same = self.jobs.get(own) or self._job_of(final)
        if same is not None and not same.broken:
            same.references.append(reference)
            if final:
                self._drop_provisional(provisional)
            return
        if own != provisional:  # `force`, or only failures are tried again
            self._drop_provisional(provisional)
        writer = self.store.writer(own, method=self.method.as_dict(), model=checkpoint.model)
        if (
            final and writer.replaces and final not in self._committed()
        ):  # by another driver, since the store was listed
            self._committed().add(final)
            self._add(opened, force=force)
            return
        if force:
            writer.discard()
        elif retry:
            writer.restage({ref.identity: ref.key for ref in inventory.matrices})
        # Until the bytes of possible copies are compared, no candidate is known to be a matrix of its own.
        waiting = {ref.key for check in inventory.tie_checks for ref in check.candidates}
        staged = writer.staged()
        todo = {ref.key for ref in inventory.matrices} - staged
        if not waiting - staged:  # copies have no results, so there are none
            inventory = inventory.without({check.source: {} for check in inventory.tie_checks})
        job = _Job(
            references=[reference],
            checkpoint=checkpoint,
            inventory=inventory,
            scan_id=own,
            final=final,
            writer=writer,
            force=force,
            todo=todo,
            waiting=todo & waiting,
        )
        self.kept += len(inventory.matrices) - len(todo)
        self.jobs[own] = job
        self._fresh.append(job)
        if not final:
            self._hasher.submit(own, checkpoint)

    def _committed(self) -> set[str]:
        """Ids of the committed scans: listed once, because a store may hold thousands, and then kept up to date."""
        if self._listed is None:
            self._listed = {*self.store.committed()}
        return self._listed

    def _begun(self) -> set[str]:
        """Ids under which earlier runs have staged parts: listed once, as above."""
        if self._staging is None:
            self._staging = {*self.store.begun()}
        return self._staging

    def _drop_provisional(self, own: str) -> None:
        """Remove parts that were staged before the content was known, and that nobody needs; those of this run are kept."""
        if own and own not in self.jobs and own in self._begun():
            self.store.writer(own, method=self.method.as_dict(), model="").discard()

    def _stored(self, final: str, *, force: bool) -> tuple[dict[str, Any] | None, bool]:
        """Return the row of a committed scan that can be reported, and whether failures of it are to be tried again."""
        if force or final not in self._committed() or not self._is_whole(final):
            return None, False
        committed = self.store.scan_row(final)
        failures = self.store.file_rows("failures", final) if committed and committed["failed"] else []
        retry = any(row["transient"] for row in failures)
        return (None if retry else committed), retry

    def _is_whole(self, scan_id: str) -> bool:
        """Whether a committed scan can be believed; the observer is told why not."""
        problem = self.store.problem("scans", scan_id)
        if problem is not None:
            self.observer.damaged(f"{problem}: it is computed again")
        return problem is None

    def _has_reported(self, final: str, references: Iterable[str]) -> bool:
        """Report references to content that this run has committed before."""
        report = self._finished.get(final)
        if report is None:
            return False
        for reference in references:
            self._report(replace(report, reference=reference))
        return True

    def _job_of(self, final: str) -> _Job | None:
        """Return the job of some content, if it is known which of them has it."""
        return next((job for job in self.jobs.values() if final and job.final == final), None)

    def tasks(self) -> list[Task]:
        """Matrices and controls without a result, largest first, behind the comparisons that some matrices wait for.

        References are opened until there is a task, and for a moment longer; `more` has the tasks of the others.
        """
        found = self._new_tasks()
        until: float | None = time.monotonic() + _GATHER_SECONDS if found else None
        while self._opener is not None and not self._opener.exhausted:
            if not self._has_room():
                if found:
                    break
                self._commit_complete()
                self._identify(timeout=1.0)
                continue
            left = None if until is None else until - time.monotonic()
            if (left is not None and left <= 0) or not self._take(left):
                break
            found += self._new_tasks()
            if found and until is None:
                until = time.monotonic() + _GATHER_SECONDS
        return self._ordered(found)

    def more(self, patience: float) -> Found:
        """Return the tasks of checkpoints that have been opened since, and commit those whose content is hashed by now."""
        self._identify(timeout=0.0)
        found: list[Task] = []
        if self._opener is None:
            return Found()
        ends = time.monotonic() + patience
        while not found and not self._opener.exhausted and self._has_room():
            if not self._take(max(0.0, ends - time.monotonic())):
                break
            found = self._new_tasks()
        return Found(tasks=tuple(self._ordered(found)), more=not self._opener.exhausted)

    def wanted(self, task: Task) -> bool:
        """Whether the model of a task is still being scanned: its content may turn out to be in the store already."""
        if isinstance(task, MatrixControlTask):
            return self._controls.wanted(task)
        owner = task.scan_id if isinstance(task, MatrixTask) else task.owner if isinstance(task, TieTask) else None
        return owner is None or owner in self.jobs

    def close(self) -> None:
        """End the threads."""
        if self._opener is not None:
            self._opener.close()
        self._hasher.close()

    def _take(self, timeout: float | None) -> bool:
        """Queue what the next opened checkpoint lacks; False if there is none within the time."""
        assert self._opener is not None
        opened = self._opener.take(timeout, self.observer.opening)
        if opened is None:
            return False
        self._add(opened, force=self.force)
        return True

    def _has_room(self) -> bool:
        """Whether the workers need another model soon."""
        models = max(_MODELS_AT_ONCE, _MODELS_PER_WORKER * int(self.environment.get("workers", 0)))
        matrices = sum(len(job.todo) for job in self.jobs.values())
        matrices += self._controls.matrices_left
        return len(self.jobs.keys() | self._controls.owners) < models and matrices < _MATRICES_AT_ONCE

    def _new_tasks(self) -> list[Task]:
        """Return the tasks of new jobs, and the controls of new shapes, which every open checkpoint has."""
        found: list[Task] = [
            task
            for task in control_tasks(self._shapes - self._controlled, self.ensembles, self.draws)
            if not self.store.has_control(task.rows, task.cols, task.ensemble, task.seed)
        ]
        self._controlled |= self._shapes
        self._shapes.clear()
        for final, checkpoint, inventory in self._kept:
            refs = self._results(final, inventory)
            found += self._controls.queue(final, final, self._controls.tasks(final, final, checkpoint, refs))
        self._kept.clear()
        for job in self._fresh:
            found += self._matrix_tasks(job, job.todo - job.waiting)
            if not job.broken:
                sure = {ref.key for ref in job.inventory.matrices} - job.waiting
                found += self._controls.queue(job.scan_id, job.final, self._controls_of(job, sure))
            if job.waiting:
                found.append(
                    TieTask(owner=job.scan_id, checks=job.inventory.tie_checks, versions=job.checkpoint.versions)
                )
        self._fresh.clear()
        return found

    @staticmethod
    def _ordered(tasks: Iterable[Task]) -> list[Task]:
        return sorted(largest_first(tasks), key=lambda task: not task.precedes)

    def expected(self, tasks: Sequence[Task]) -> tuple[int, float]:
        """The tasks, and those of the matrices that wait for a comparison."""
        owners = [self.jobs[task.owner] for task in tasks if isinstance(task, TieTask) and task.owner in self.jobs]
        waiting: list[Task] = [task for job in owners for task in self._matrix_tasks(job, job.waiting)]
        waiting += [task for job in owners for task in self._controls_of(job, job.waiting)]
        return super().expected([*tasks, *waiting])

    def _matrix_tasks(self, job: _Job, keys: set[str]) -> list[MatrixTask]:
        checkpoint = job.checkpoint
        refs = [ref for ref in job.inventory.matrices if ref.key in keys]
        neighbors = REMOTE_NEIGHBORS if "://" in checkpoint.source else 0
        return [
            MatrixTask(
                scan_id=job.scan_id,
                model=checkpoint.model,
                revision=checkpoint.revision if job.scan_id == job.final else "",  # as provisional as the id
                source=checkpoint.source,
                refs=group,
                sigma=self.method.sigma,
                null=self.method.null,
                scale=self.method.scale,
                head_mass=self.method.head_mass,
                values_only=self.method.values_only,
                metrics=self.method.metrics,
                versions=versions_read(checkpoint.source, group, checkpoint.versions),
            )
            for group in reads(refs, neighbors=neighbors)
        ]

    def _controls_of(self, job: _Job, keys: set[str]) -> list[MatrixControlTask]:
        """Return the controls of matrices of a job that neither the store nor an interrupted run has."""
        refs = [ref for ref in job.inventory.matrices if ref.key in keys]
        return self._controls.tasks(job.scan_id, job.final, job.checkpoint, refs)

    def _results(self, final: str, inventory: Inventory) -> list[MatrixRef]:
        """Return the matrices that a committed scan has rows of: not those that failed, or are copies of others."""
        known = {tuple(row[name] for name in MATRIX_KEY) for row in self.store.file_rows("matrices", final, MATRIX_KEY)}
        return [ref for ref in inventory.matrices if ref.identity in known]

    def started(self, environment: dict[str, Any]) -> None:
        """Commit models that an earlier run completed but did not commit, while the workers start."""
        self.environment = environment
        self._commit_complete()
        # pyarrow looks for pandas at its first Python list: do it now, not between the last matrix and the commit.
        pa.array([0])

    def done(self, task: Task, value: Any) -> Stored:
        """Stage the rows of a task; the last one of a model commits it."""
        if isinstance(task, ControlTask):
            self.store.write_control(rows.unpack(value), task.rows, task.cols, task.ensemble, task.seed)
            return Stored()
        if isinstance(task, MatrixControlTask):
            return self._controls.done(task, value)
        job = self._owner(task)
        if job is None:  # its content was found in the store in the meantime
            return Stored()
        if isinstance(task, TieTask):
            return Stored(following=tuple(self._resolved(job, value)))
        assert isinstance(task, MatrixTask)
        if not job.changed.isdisjoint(task.versions):
            return self._finished_task(job, task, [ref.tensor for ref in task.refs])
        tensors = {ref.key: ref.tensor for ref in task.refs}
        failed = []
        for result in value:
            if result.failure:
                job.writer.stage_failure(result.key, rows.unpack(result.failure))
                failed.append(tensors[result.key])
            else:
                job.writer.stage_part(result.key, result.part)
        return self._finished_task(job, task, failed)

    def failed(self, task: Task, failure: Failure) -> Stored:
        """Record the matrices of a task that lost its workers. A control has no row of its own: the next scan tries it again."""
        if isinstance(task, ControlTask):
            return Stored(failed=(task.name,))
        if isinstance(task, MatrixControlTask):
            job = self.jobs.get(task.scan_id)
            stored = self._controls.failed(task)
            if job is not None and failure.changed:
                self._break(job, failure.message, changed=task.versions)
            return stored
        job = self._owner(task)
        if job is None:
            return Stored()
        if isinstance(task, TieTask):
            job.todo -= job.waiting  # nobody will find out whether they are copies
            self._break(job, failure.message, changed=task.versions if failure.changed else ())
            return Stored()
        assert isinstance(task, MatrixTask)
        if failure.changed:
            self._break(job, failure.message, changed=task.versions)
            return self._finished_task(job, task, [ref.tensor for ref in task.refs])
        for ref in task.refs:
            row = rows.failure_row(
                task,
                ref,
                stage="analyse",
                error=failure.error,
                message=failure.message,
                transient=failure.transient,
            )
            job.writer.stage_failure(ref.key, row)
        return self._finished_task(job, task, [ref.tensor for ref in task.refs])

    def finish(self) -> None:
        """Commit jobs that are complete, as soon as their content is hashed."""
        self._commit_complete()
        if self._hasher.pending:
            self.observer.hashing(self.names)
        while self._hasher.pending:
            self._identify(timeout=60.0)
        for line in self._controls.notes():
            self.observer.note(line)

    def report(self, references: Sequence[str]) -> ScanReport:
        """Results of the references."""
        return ScanReport(store=self.store.url, models=tuple(self.reports[reference] for reference in references))

    def _owner(self, task: Task) -> _Job | None:
        assert isinstance(task, MatrixTask | TieTask)
        return self.jobs.get(task.scan_id if isinstance(task, MatrixTask) else task.owner)

    def _commit_complete(self) -> None:
        for job in [*self.jobs.values()]:
            if not job.todo and not job.committed and not job.broken:
                self._commit(job)

    def _finished_task(self, job: _Job, task: MatrixTask, failed: Sequence[str]) -> Stored:
        job.todo -= {ref.key for ref in task.refs}
        if not job.todo:
            if job.broken:
                self._release(job)
            else:
                self._commit(job)
        return Stored(failed=tuple(failed))

    def _resolved(self, job: _Job, copies: Mapping[str, Mapping[str, str]]) -> list[Task]:
        """Skip the copies, and return the tasks of the other matrices that waited."""
        job.inventory = job.inventory.without(copies)
        matrices = {ref.key for ref in job.inventory.matrices}
        following: list[Task] = [*self._matrix_tasks(job, job.waiting & matrices)]
        if not job.broken:
            controls = self._controls_of(job, job.waiting & matrices)
            following += self._controls.queue(job.scan_id, job.final, controls)
        job.todo &= matrices
        job.waiting.clear()
        self._commit_complete()
        return largest_first(following)

    def _break(self, job: _Job, reason: str, *, changed: Iterable[FileVersion] = ()) -> None:
        """Report that a model cannot be scanned. What is staged stays for the next run, unless it is from a changed file."""
        lost = {*changed} - job.changed
        job.changed |= lost
        checkpoint = job.checkpoint
        job.writer.unstage(
            ref.key
            for ref in job.inventory.matrices
            if not lost.isdisjoint(versions_read(checkpoint.source, [ref], lost))
        )
        if job.broken:
            return
        job.broken = True
        self._hasher.drop(job.scan_id)
        self._controls.drop(job.scan_id)
        error = (ChangedError if lost else CheckpointError)(reason)
        if self.strict:
            raise error
        for reference in job.references:
            self._report(ModelReport(reference=reference, error=error))
        if not job.todo:
            self._release(job)

    def _release(self, job: _Job) -> None:
        """Forget a job."""
        self._hasher.drop(job.scan_id)
        self.jobs.pop(job.scan_id, None)

    def _abandon(self, job: _Job) -> None:
        """Drop what is staged of a job, because its content has a scan."""
        job.writer.discard()
        self._release(job)

    def _identify(self, *, timeout: float) -> None:
        """Take up the identities of checkpoints that have been hashed; waits for the first of them."""
        while (hashed := self._hasher.take(timeout)) is not None:
            timeout = 0.0
            own, found = hashed
            job = self.jobs.get(own)
            if job is None or job.broken:
                continue
            if isinstance(found, CheckpointError):
                self._break(job, str(found), changed=job.checkpoint.versions if isinstance(found, ChangedError) else ())
            else:
                self._identified(job, found)

    def _identified(self, job: _Job, checkpoint: Checkpoint) -> None:
        final = scan_id(checkpoint.identity, self.method)
        self._controls.identify(job.scan_id, final)
        if self._is_known(job, final):
            return
        same = self._job_of(final)
        job.checkpoint, job.final = checkpoint, final
        if same is not None and not same.broken:  # two copies of one checkpoint
            same.references += job.references
            self._abandon(job)
        elif not job.todo:
            self._commit(job)

    def _is_known(self, job: _Job, final: str) -> bool:
        """Whether the content of a job has a scan, of this run or an earlier one; it is reported then, and the job dropped."""
        if self._has_reported(final, job.references):
            self._abandon(job)
            return True
        found, _ = self._stored(final, force=job.force)
        if found is None:
            return False
        for reference in job.references:
            self._report(_report_of_row(reference, found))
        self._abandon(job)
        return True

    def _commit(self, job: _Job) -> None:
        if not job.final:
            return  # the content is not hashed yet: `_identified` commits it
        try:
            check_unchanged(job.checkpoint.versions)
        except ChangedError as error:
            self._break(job, str(error), changed=job.checkpoint.versions)
            return
        checkpoint, finished_at = job.checkpoint, datetime.now(UTC)
        if job.scan_id != job.final:
            job.writer.become(job.final, checkpoint.revision)
            if job.writer.replaces:  # perhaps by another driver, since the store was listed
                self._committed().add(job.final)
                if self._is_known(job, job.final):
                    return
        new = job.writer.commit(
            {
                "scan_id": job.final,
                "model": checkpoint.model,
                "revision": checkpoint.revision,
                "source": checkpoint.place,
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
                "initializer_range": None if checkpoint.base else initializer_range(checkpoint.config),
                "scanner_version": __version__,
                "method": json.dumps(self.method.as_dict()),
                "environment": json.dumps(self.environment),
            },
            clean_up=False,  # the report does not wait for the removal of many small files
        )
        job.committed = True
        self._committed().add(job.final)
        row = self.store.scan_row(job.final)
        assert row is not None, "a committed scan can be read"
        for reference in job.references:
            self._finished[job.final] = self._report(_report_of_row(reference, row, new=new))
        job.writer.clean_up()
        self._release(job)

    def _report(self, report: ModelReport) -> ModelReport:
        report = _small(replace(report, beside=self._beside.pop(report.reference, ())))
        self.reports[report.reference] = report
        self.observer.model_done(report)
        return report


def _small(report: ModelReport) -> ModelReport:
    """Return a report that keeps little memory alive: names that models share are stored once, and errors hold no frames."""
    error: BaseException | None = report.error
    while error is not None:
        error.__traceback__ = None
        error.__context__ = None
        error = error.__cause__
    intern = sys.intern
    return replace(report, skipped={intern(why): [*map(intern, names)] for why, names in report.skipped.items()})


def _report_of_row(reference: str, row: dict[str, Any], *, new: bool = False) -> ModelReport:
    return ModelReport(
        reference=reference,
        model=row["model"],
        revision=row["revision"] or "",
        scan_id=row["scan_id"],
        analyzed=row["matrices"],
        skipped=lists_of_text(row["skipped_tensors"]),
        failed=row["failed"],
        new=new,
    )


def scan(
    references: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    store: str | os.PathLike[str] = "results",
    method: Method | None = None,
    ensembles: Sequence[Ensemble] = ENSEMBLES,
    draws: int = 1,
    pool: PoolOptions | None = None,
    force: bool = False,
    download: bool = False,
    name: str | None = None,
    observer: Observer | None = None,
) -> ScanReport:
    """Scan checkpoints into a store, on a local Ray or a running cluster; existing results are reused.

    Args:
        references: one or more checkpoints: a folder or file, `org/name[@revision]`, a URL, `delta:BASE..TUNED`. An iterator is
            read as the scan proceeds, in another thread.
        store: where the results are written; created if it does not exist.
        method: what is computed; None: the defaults of `Method`.
        ensembles: random controls: those of `ENSEMBLES` for each distinct shape, those of `MATRIX_ENSEMBLES` for each matrix.
        draws: number of draws of each control.
        pool: where and on how many workers; None: this machine, one worker per core (or GPU).
        force: scan again even if the store has the results.
        download: download whole files of the Hub into its cache instead of reading byte ranges.
        name: name of the model in the store, of a single reference; None: that of the checkpoint. It is not part of the identity.
        observer: receives the progress.

    Returns:
        Results of all references. One that cannot be opened has its error there and does not stop the others.

    Raises:
        ScannerError: nothing can continue: a store that cannot be written, no worker, no cluster.
        KeyboardInterrupt: interrupted; finished matrices are in the store, and the same call resumes.
    """
    named = _References(references)
    if name is not None:
        check_name(name, named.count)
    observer, options = observer or Observer(), pool or PoolOptions()
    check_controls(ensembles, draws)
    target = open_store(os.fspath(store), create=True)
    work = ScanWork(
        target,
        method or Method(),
        observer,
        ensembles,
        draws=draws,
        references=iter(named),
        force=force,
        download=download,
        name=name,
    )
    run([work], options, observer)
    return work.report(named.seen)


def check_name(name: str, references: int | None) -> None:
    """Check a name for a model.

    Args:
        name: the name.
        references: number of references that it is for; None: not known.

    Raises:
        ConfigError: it is no name, or there is not one reference.
    """
    if not isinstance(name, str) or not name.strip():
        raise ConfigError("name", "is empty: give the model a name, or leave it out")
    if name != name.strip() or printable(name) != name or "@" in name:
        raise ConfigError(
            "name", f"is {printable(name)!r}: at most {MAX_SHOWN} printable characters, no @, and no space at the ends"
        )
    if name.startswith(DIFFERENCE):
        raise ConfigError("name", f"is {printable(name)!r}: names of differences begin like this")
    if references != 1:
        raise ConfigError("name", "names one model: give one reference")


def check_controls(ensembles: Sequence[str], draws: int) -> None:
    """Raise ScannerError if there is no such control, or no draw of it."""
    known = (*ENSEMBLES, *MATRIX_ENSEMBLES)
    if isinstance(ensembles, str):
        raise ConfigError("ensembles", f"is the text {ensembles!r}: give a list of names")
    if isinstance(draws, bool) or not isinstance(draws, int):
        raise ConfigError("draws", f"must be a whole number, got {draws!r}")
    unknown = [ensemble for ensemble in ensembles if ensemble not in known]
    if unknown:
        raise ScannerError(f"unknown ensemble {unknown[0]!r}: choose from {', '.join(known)}")
    if draws < 1:
        raise ConfigError("draws", f"must be at least 1, got {draws}")


class _References:
    """References, each once; a model or its weights in memory have no files, and so no identity."""

    def __init__(self, references: object) -> None:
        """Check what can be checked now; the items of an iterator are checked when they are reached.

        Raises:
            ConfigError: something else than references.
        """
        self._named: Any = [references] if isinstance(references, str | os.PathLike) else references
        self._seen: dict[str, None] = {}
        if not isinstance(self._named, Iterable) or isinstance(self._named, Mapping | bytes):
            raise _not_a_reference(self._named)
        if not isinstance(self._named, Iterator):
            self._named = [self._checked(one) for one in self._named]

    @property
    def count(self) -> int | None:
        """Number of references; None if they come from an iterator."""
        return None if isinstance(self._named, Iterator) else len({*self._named})

    @property
    def seen(self) -> list[str]:
        """Those that were reached, in their order."""
        return [*self._seen]

    def __iter__(self) -> Iterator[str]:
        for one in self._named:
            reference = self._checked(one)
            if reference not in self._seen:
                self._seen[reference] = None
                yield reference

    @staticmethod
    def _checked(one: object) -> str:
        if not isinstance(one, str | os.PathLike):
            raise _not_a_reference(one)
        return str(os.fspath(one))


def _not_a_reference(wrong: object) -> ConfigError:
    return ConfigError(
        "references",
        f"has a {type(wrong).__name__}: name checkpoints by path, Hub id or URL, pass a model in memory or its state dict to "
        "`scanner.analyze_model`, and a matrix to `scanner.analyze`",
    )


class _Callable(ModuleType):
    """Makes the module callable, because `from scanner.engine import scan` finds the module and not its function."""

    def __call__(self, *arguments: Any, **options: Any) -> ScanReport:
        return scan(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
