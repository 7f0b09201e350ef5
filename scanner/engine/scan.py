"""Scanning checkpoints: one queue and one pool of workers for all models; each model is committed as soon as it is complete."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import pyarrow as pa

from scanner.checkpoint import (
    Checkpoint,
    Inventory,
    MatrixRef,
    TensorEntry,
    TieCheck,
    list_matrices,
    open_checkpoint,
    read_matrices,
    resolve_ties,
)
from scanner.checkpoint.sources.files import FileVersion, check_unchanged
from scanner.checkpoint.sources.retry import may_pass
from scanner.engine import rows
from scanner.engine.method import Method, scan_id
from scanner.engine.options import PoolOptions
from scanner.engine.plan import decomposition_cost, decomposition_limit, largest_first, reads
from scanner.engine.run import run
from scanner.engine.task import Context, Failure, Task
from scanner.engine.work import Observer, Stored, Work
from scanner.errors import ChangedError, CheckpointError, ConfigError, ScannerError
from scanner.rmt.analysis import Analysis, analyze, decomposed, scale_profile, summarize
from scanner.rmt.decomposition import LowRank
from scanner.rmt.ensembles import ENSEMBLES, MATRIX_ENSEMBLES, Ensemble, control, control_of
from scanner.rmt.ks_null import KsNull
from scanner.rmt.vocabulary import ScaleKind, SigmaKind
from scanner.store import ScanWriter, Store, finished_part, open_store
from scanner.store.tables import lists_of_text
from scanner.version import __version__

#: Bytes of neighboring weights that one request may fetch together if the checkpoint is on a network.
REMOTE_NEIGHBORS = 32 << 20
#: The seed of all controls: they are stored by shape and shared by all scans.
CONTROL_SEED = 0
_DEFAULT_SIGMA: SigmaKind = "median"
_DEFAULT_SCALE: ScaleKind = "robust"


@dataclass(frozen=True, kw_only=True)
class MatrixResult:
    """Result of one matrix: its rows as a part of the store, or the row of its failure, packed by `pack`."""

    key: str
    part: bytes = b""
    failure: bytes = b""


@dataclass(frozen=True, kw_only=True)
class MatrixTask(Task):
    """Read matrices of one checkpoint that share a read (parts of a fused weight, heads, neighbors), and analyze each."""

    scan_id: str
    model: str
    revision: str
    source: str
    refs: tuple[MatrixRef, ...]
    sigma: SigmaKind
    null: str
    scale: ScaleKind = "none"
    versions: tuple[FileVersion, ...] = ()
    """Versions of the files that the matrices are read from."""

    @property
    def name(self) -> str:
        """Scan and matrix."""
        return f"{self.scan_id}/{self.refs[0].key}"

    @property
    def cost(self) -> float:
        """Work of the decompositions."""
        return sum(decomposition_cost(ref.rows, ref.cols) for ref in self.refs)

    @property
    def items(self) -> int:
        """Number of matrices."""
        return len(self.refs)

    @property
    def time_limit(self) -> float:
        """Far more than the decompositions take."""
        return decomposition_limit(self.cost)

    def run(self, context: Context) -> tuple[MatrixResult, ...]:
        """Analyze every matrix; the failure of one does not affect the others.

        Raises:
            ChangedError: a file is not the one that was hashed.
        """
        return tuple(
            self._result(context, ref, matrix, seconds) for ref, matrix, seconds in self._read(context, self.refs)
        )

    def _read(self, context: Context, refs: tuple[MatrixRef, ...]) -> list[tuple[MatrixRef, Any, float]]:
        """Every matrix, or the exception in its place, and the seconds it took; if reading all at once fails, each by itself."""
        before = context.seconds("read")
        try:
            with context.stage("read"):
                matrices = read_matrices(self.source, refs, self.versions)
        except ChangedError:
            raise
        except Exception as error:  # an error of one matrix must not stop the scan; a row records it
            if len(refs) == 1:
                return [(refs[0], error, 0.0)]
            return [found for ref in refs for found in self._read(context, (ref,))]
        seconds = (context.seconds("read") - before) / len(matrices)
        context.count_bytes(bytes_of(refs))
        return [(ref, matrix, seconds) for ref, matrix in zip(refs, matrices, strict=True)]

    def _result(self, context: Context, ref: MatrixRef, matrix: Any, read_seconds: float) -> MatrixResult:
        error, stage = matrix if isinstance(matrix, Exception) else None, "read"
        if error is None:
            try:
                analysis, seconds = analyze_timed(context, matrix, sigma=self.sigma, null=self.null, scale=self.scale)
            except Exception as raised:  # as above
                error, stage = raised, "analyse"
        if error is not None:
            row = rows.failure_row(
                self,
                ref,
                stage=stage,
                error=type(error).__name__,
                message=str(error),
                transient=stage == "read" and may_pass(error),
            )
            return MatrixResult(key=ref.key, failure=rows.pack(row))
        measured = {
            "seconds": read_seconds + seconds["decompose"] + seconds["test"],
            "read_seconds": read_seconds,
            "decompose_seconds": seconds["decompose"],
            "test_seconds": seconds["test"],
            "bytes_read": bytes_of([ref]),
        }
        row = rows.matrix_row(self, ref, analysis, device=context.device, measured=measured)
        vectors = rows.vector_rows(self, ref, analysis)
        # Packed here, where the cores are: the driver only writes the bytes.
        return MatrixResult(key=ref.key, part=finished_part(self.scan_id, ref.key, row, vectors))


@dataclass(frozen=True, kw_only=True)
class TieTask(Task):
    """Compare the bytes of embeddings and output heads, to find those that are one weight under two names."""

    owner: str
    """Identity of the scan or side of the comparison that needs the result."""
    checks: tuple[TieCheck, ...]
    versions: tuple[FileVersion, ...] = ()

    @property
    def name(self) -> str:
        """Who asks."""
        return f"ties/{self.owner}"

    @property
    def cost(self) -> float:
        """Negligible compared with decompositions."""
        return 0.0

    @property
    def items(self) -> int:
        """Not counted: it is not a matrix."""
        return 0

    @property
    def time_limit(self) -> float:
        """Far more than reading takes."""
        return decomposition_limit(sum(ref.rows * ref.cols for check in self.checks for ref in check.candidates))

    def run(self, context: Context) -> dict[str, dict[str, str]]:
        """Return the copies, as `Inventory.without` needs them."""
        with context.stage("read"):
            return resolve_ties(self.checks, self.versions)


@dataclass(frozen=True, kw_only=True)
class ControlTask(Task):
    """Draw one random matrix of an ensemble and analyze it."""

    ensemble: Ensemble
    rows: int
    cols: int
    seed: int = CONTROL_SEED

    @property
    def name(self) -> str:
        """Shape, ensemble and seed."""
        return f"control/{self.rows}x{self.cols}-{self.ensemble}-{self.seed}"

    @property
    def cost(self) -> float:
        """Work of the decomposition."""
        return decomposition_cost(self.rows, self.cols)

    @property
    def time_limit(self) -> float:
        """Far more than the decomposition takes."""
        return decomposition_limit(self.cost)

    def run(self, context: Context) -> bytes:
        """Return the rows of `controls`, packed."""
        drawn = control(self.ensemble, self.rows, self.cols, self.seed)
        analysis, _ = analyze_timed(context, drawn, sigma=_DEFAULT_SIGMA, null="table", scale=_DEFAULT_SCALE)
        return rows.pack(rows.control_rows(self, analysis))


@dataclass(frozen=True, kw_only=True)
class MatrixControlTask(Task):
    """Read a matrix, draw random matrices that are made from it, and analyze each."""

    scan_id: str
    model: str
    revision: str
    source: str
    ref: MatrixRef
    sigma: SigmaKind
    null: str
    scale: ScaleKind
    wanted: tuple[tuple[Ensemble, int], ...]
    """Ensembles and seeds."""
    versions: tuple[FileVersion, ...] = ()

    @property
    def name(self) -> str:
        """Scan, matrix and that it is a control."""
        return f"{self.scan_id}/control/{self.ref.key}"

    @property
    def cost(self) -> float:
        """Work of the decompositions."""
        return decomposition_cost(self.ref.rows, self.ref.cols) * (len(self.wanted) + 1)

    @property
    def items(self) -> int:
        """Number of controls."""
        return len(self.wanted)

    @property
    def time_limit(self) -> float:
        """Far more than the decompositions take."""
        return decomposition_limit(self.cost)

    def run(self, context: Context) -> tuple[tuple[Ensemble, int, bytes], ...]:
        """Return the rows of `matrix_controls`, packed; without bytes where the matrix has no scale null to draw from.

        Raises:
            ChangedError: the file is not the one that was hashed.
            CheckpointError: the matrix cannot be read.
        """
        with context.stage("read"):
            [read] = read_matrices(self.source, (self.ref,), self.versions)
        parts, _ = decomposed(read)
        matrix = parts.left.T.mul(parts.singular_values) @ parts.right if isinstance(read, LowRank) else read
        profile = None
        if any(ensemble == "scale" for ensemble, _ in self.wanted):
            kind: ScaleKind = "total" if self.scale == "total" else "robust"
            profile = scale_profile(parts, kind)
        found = []
        for ensemble, seed in self.wanted:
            packed = b""
            if ensemble != "scale" or profile is not None:
                drawn = control_of(ensemble, matrix.double().cpu().numpy(), seed, profile)
                analysis, _ = analyze_timed(context, drawn, sigma=self.sigma, null=self.null, scale=self.scale)
                packed = rows.pack(rows.matrix_control_rows(self, ensemble, seed, analysis))
            found.append((ensemble, seed, packed))
        return tuple(found)


def analyze_timed(
    context: Context, matrix: Any, *, sigma: SigmaKind, null: str, scale: ScaleKind
) -> tuple[Analysis, dict[str, float]]:
    """Analyze a matrix on the worker's device; returns the seconds of the stages `decompose` and `test` beside it."""
    before = {stage: context.seconds(stage) for stage in ("decompose", "test")}
    with context.computing():
        with context.stage("decompose"):
            parts, total = decomposed(matrix, context.device)
        with context.stage("test"):
            analysis = summarize(parts, total, sigma=sigma, null=KsNull.parse(null), scale=scale)
    return analysis, {stage: context.seconds(stage) - seconds for stage, seconds in before.items()}


def bytes_of(refs: Iterable[MatrixRef]) -> int:
    """Bytes of the stored tensors that matrices are made of, of both sides of a difference; each tensor counts once."""
    return sum(entry.size for _, entry in _stored("", refs))


def versions_read(source: str, refs: Iterable[MatrixRef], versions: Iterable[FileVersion]) -> tuple[FileVersion, ...]:
    """Return the versions of those files that matrices of a checkpoint are read from."""
    files = {(place, entry.file) for place, entry in _stored(source, refs)}
    return tuple(version for version in versions if (version.source, version.name) in files)


def _stored(source: str, refs: Iterable[MatrixRef]) -> set[tuple[str, TensorEntry]]:
    """Return the stored tensors that matrices are made of, each with its source, of both sides of a difference."""
    found: set[tuple[str, TensorEntry]] = set()
    for ref in refs:
        side: tuple[str, MatrixRef] | None = (source, ref)
        while side is not None:
            place, one = side
            found |= {(place, entry) for entry in (one.entry, *(entry for _, entry in one.companions))}
            side = one.minus
    return found


def control_tasks(
    shapes: Iterable[tuple[int, int]], ensembles: Iterable[Ensemble], draws: int = 1
) -> list[ControlTask]:
    """One control for every distinct shape, ensemble of `ENSEMBLES` and draw."""
    distinct = sorted(set(shapes))
    return [
        ControlTask(ensemble=ensemble, rows=rows, cols=cols, seed=seed)
        for ensemble in dict.fromkeys(ensembles)
        if ensemble in ENSEMBLES
        for rows, cols in distinct
        for seed in range(CONTROL_SEED, CONTROL_SEED + draws)
    ]


def warm_up() -> None:
    """Load the libraries of an analysis: this belongs to the start of a worker and not to its first matrix."""
    rows.warm_up(analyze([[1.0, 0.0], [0.0, 2.0]]))


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """Result of one reference: the three counts add up to the tensors of the checkpoint; slices count as one each."""

    reference: str
    model: str = ""
    revision: str = ""
    scan_id: str = ""
    analysed: int = 0
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> tensors that were skipped for it."""
    failed: int = 0
    new: bool = True
    """False if the store already had this scan."""
    error: ScannerError | None = None
    """Why the reference cannot be scanned."""
    beside: tuple[str, ...] = ()
    """References of other models in the same folder, which are not part of this one."""

    @property
    def analyzed(self) -> int:
        """Number of analyzed matrices."""
        return self.analysed

    @property
    def skipped_count(self) -> int:
        """Number of skipped tensors."""
        return sum(len(names) for names in self.skipped.values())


@dataclass(frozen=True, kw_only=True)
class ScanReport:
    """Results of all references of one command, in the order in which they were named."""

    store: str
    models: tuple[ModelReport, ...]

    @property
    def failed(self) -> int:
        """Number of failed tensors of all models."""
        return sum(model.failed for model in self.models)

    @property
    def errors(self) -> tuple[ModelReport, ...]:
        """References that could not be scanned."""
        return tuple(model for model in self.models if model.error is not None)

    @property
    def exit_status(self) -> int:
        """0: done; 1: a reference cannot be scanned; 3: some tensors failed."""
        return 1 if self.errors else 3 if self.failed else 0


@dataclass(kw_only=True)
class _Job:
    """One checkpoint that is being scanned."""

    references: list[str]  # more than one if several names lead to the same content
    checkpoint: Checkpoint
    inventory: Inventory
    scan_id: str
    writer: ScanWriter
    todo: set[str]  # keys of the matrices without a result
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
        strict: bool = False,
    ) -> None:
        """With `strict`, a model that cannot be scanned ends the run with an error, because other work needs its scan."""
        self.store, self.method, self.observer, self.ensembles = store, method, observer, ensembles
        self.jobs: dict[str, _Job] = {}
        self.reports: dict[str, ModelReport] = {}
        self.draws = draws
        self.shapes: set[tuple[int, int]] = set()
        self.controlled: dict[str, tuple[Checkpoint, Inventory]] = {}
        self.environment: dict[str, Any] = {}
        self.beside: dict[str, tuple[str, ...]] = {}
        self.strict = strict

    @property
    def names(self) -> list[str]:
        """The models that are scanned."""
        return [job.checkpoint.model for job in self.jobs.values()]

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
        self.beside[reference] = checkpoint.beside
        try:
            inventory = list_matrices(checkpoint, self.method.selection, compare_bytes=False)
            if not inventory.matrices:
                raise CheckpointError(nothing_to_scan(checkpoint, inventory))
        except CheckpointError as error:
            self._report(ModelReport(reference=reference, error=error))
            return
        identity = scan_id(checkpoint.identity, self.method)
        self.shapes.update((ref.rows, ref.cols) for ref in inventory.matrices)
        self.controlled[identity] = checkpoint, inventory
        retry = False
        if not force and identity in self.store.committed() and self._is_whole(identity):
            committed = self.store.scan_row(identity)
            failures = self.store.file_rows("failures", identity) if committed and committed["failed"] else []
            retry = any(row["transient"] for row in failures)
            if committed is not None and not retry:
                self._report(_report_of_row(reference, committed))
                return
        if identity in self.jobs:
            self.jobs[identity].references.append(reference)
            return
        writer = self.store.writer(identity, method=self.method.as_dict(), model=checkpoint.model)
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
        self.jobs[identity] = _Job(
            references=[reference],
            checkpoint=checkpoint,
            inventory=inventory,
            scan_id=identity,
            writer=writer,
            todo=todo,
            waiting=todo & waiting,
        )

    def _is_whole(self, scan_id: str) -> bool:
        """Whether a committed scan can be believed; the observer is told why not."""
        problem = self.store.problem("scans", scan_id)
        if problem is not None:
            self.observer.damaged(f"{problem}: it is computed again")
        return problem is None

    def tasks(self) -> list[Task]:
        """Matrices and controls without a result, largest first, behind the comparisons that some matrices wait for."""
        self.kept = sum(len(job.inventory.matrices) - len(job.todo) for job in self.jobs.values())
        found: list[Task] = [
            task
            for task in control_tasks(self.shapes, self.ensembles, self.draws)
            if not self.store.has_control(task.rows, task.cols, task.ensemble, task.seed)
        ]
        found += self._matrix_control_tasks()
        for job in self.jobs.values():
            found += self._matrix_tasks(job, job.todo - job.waiting)
        ties = [
            TieTask(owner=job.scan_id, checks=job.inventory.tie_checks, versions=job.checkpoint.versions)
            for job in self.jobs.values()
            if job.waiting
        ]
        return [*ties, *largest_first(found)]

    def expected(self, tasks: Sequence[Task]) -> tuple[int, float]:
        """The tasks, and those of the matrices that wait for a comparison."""
        waiting = [task for job in self.jobs.values() for task in self._matrix_tasks(job, job.waiting)]
        return super().expected([*tasks, *waiting])

    def _matrix_tasks(self, job: _Job, keys: set[str]) -> list[MatrixTask]:
        checkpoint = job.checkpoint
        refs = [ref for ref in job.inventory.matrices if ref.key in keys]
        neighbors = REMOTE_NEIGHBORS if "://" in checkpoint.source else 0
        return [
            MatrixTask(
                scan_id=job.scan_id,
                model=checkpoint.model,
                revision=checkpoint.revision,
                source=checkpoint.source,
                refs=group,
                sigma=self.method.sigma,
                null=self.method.null,
                scale=self.method.scale,
                versions=versions_read(checkpoint.source, group, checkpoint.versions),
            )
            for group in reads(refs, neighbors=neighbors)
        ]

    def _matrix_control_tasks(self) -> list[MatrixControlTask]:
        """Controls of matrices that the store does not have. Weights that may be copies of others have none."""
        ensembles = [ensemble for ensemble in dict.fromkeys(self.ensembles) if ensemble in MATRIX_ENSEMBLES]
        found = []
        for identity, (checkpoint, inventory) in self.controlled.items() if ensembles else ():
            copies = {ref.key for check in inventory.tie_checks for ref in check.candidates}
            for ref in inventory.matrices:
                wanted = tuple(
                    (ensemble, seed)
                    for ensemble in ensembles
                    for seed in range(CONTROL_SEED, CONTROL_SEED + self.draws)
                    if not self.store.has_matrix_control(identity, ref.key, ensemble, seed)
                )
                if wanted and ref.key not in copies:
                    task = MatrixControlTask(
                        scan_id=identity,
                        model=checkpoint.model,
                        revision=checkpoint.revision,
                        source=checkpoint.source,
                        ref=ref,
                        sigma=self.method.sigma,
                        null=self.method.null,
                        scale=self.method.scale,
                        wanted=wanted,
                        versions=versions_read(checkpoint.source, [ref], checkpoint.versions),
                    )
                    found.append(task)
        return found

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
            for ensemble, seed, packed in value:
                if packed:
                    self.store.write_matrix_control(rows.unpack(packed), task.scan_id, task.ref.key, ensemble, seed)
            return Stored(failed=tuple(f"{task.name}-{e}-{seed}" for e, seed, packed in value if not packed))
        if isinstance(task, TieTask):
            return Stored(following=tuple(self._resolved(self.jobs[task.owner], value)))
        assert isinstance(task, MatrixTask)
        job = self.jobs[task.scan_id]
        if not job.changed.isdisjoint(task.versions):
            return Stored(failed=tuple(ref.tensor for ref in task.refs))
        tensors = {ref.key: ref.tensor for ref in task.refs}
        failed = []
        for result in value:
            if result.failure:
                job.writer.stage_failure(result.key, rows.unpack(result.failure))
                failed.append(tensors[result.key])
            else:
                job.writer.stage_part(result.key, result.part)
        return self._finished(job, task, failed)

    def failed(self, task: Task, failure: Failure) -> Stored:
        """Record the matrices of a task that lost its workers. A control has no row of its own: the next scan tries it again."""
        if isinstance(task, ControlTask | MatrixControlTask):
            return Stored(failed=(task.name,))
        if isinstance(task, TieTask):
            self._break(self.jobs[task.owner], failure.message, changed=task.versions if failure.changed else ())
            return Stored()
        assert isinstance(task, MatrixTask)
        job = self.jobs[task.scan_id]
        if failure.changed:
            self._break(job, failure.message, changed=task.versions)
            return Stored(failed=tuple(ref.tensor for ref in task.refs))
        for ref in task.refs:
            row = rows.failure_row(task, ref, stage="analyse", error=failure.error, message=failure.message)
            job.writer.stage_failure(ref.key, row)
        return self._finished(job, task, [ref.tensor for ref in task.refs])

    def finish(self) -> None:
        """Commit jobs that are complete."""
        self._commit_complete()

    def report(self, references: Sequence[str]) -> ScanReport:
        """Results of the references."""
        return ScanReport(store=self.store.url, models=tuple(self.reports[reference] for reference in references))

    def _commit_complete(self) -> None:
        for job in self.jobs.values():
            if not job.todo and not job.committed and not job.broken:
                self._commit(job)

    def _finished(self, job: _Job, task: MatrixTask, failed: Sequence[str]) -> Stored:
        job.todo -= {ref.key for ref in task.refs}
        if not job.todo and not job.broken:
            self._commit(job)
        return Stored(failed=tuple(failed))

    def _resolved(self, job: _Job, copies: Mapping[str, Mapping[str, str]]) -> list[MatrixTask]:
        """Skip the copies, and return the tasks of the other matrices that waited."""
        job.inventory = job.inventory.without(copies)
        matrices = {ref.key for ref in job.inventory.matrices}
        following = self._matrix_tasks(job, job.waiting & matrices)
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
        error = (ChangedError if lost else CheckpointError)(reason)
        if self.strict:
            raise error
        for reference in job.references:
            self._report(ModelReport(reference=reference, error=error))

    def _commit(self, job: _Job) -> None:
        try:
            check_unchanged(job.checkpoint.versions)
        except ChangedError as error:
            self._break(job, str(error), changed=job.checkpoint.versions)
            return
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
            clean_up=False,  # the report does not wait for the removal of many small files
        )
        job.committed = True
        row = self.store.scan_row(job.scan_id)
        assert row is not None, "a committed scan can be read"
        for reference in job.references:
            self._report(_report_of_row(reference, row, new=True))
        job.writer.clean_up()

    def _report(self, report: ModelReport) -> None:
        report = replace(report, beside=self.beside.get(report.reference, ()))
        self.reports[report.reference] = report
        self.observer.model_done(report)


def nothing_to_scan(checkpoint: Checkpoint, inventory: Inventory) -> str:
    """Say in one line why a checkpoint has no matrix to analyze."""
    reasons: dict[str, int] = {}
    for tensor in inventory.skipped:
        reasons[tensor.reason] = reasons.get(tensor.reason, 0) + 1
    told = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))
    return f"{checkpoint.model}: no matrix to analyze among its {len(inventory.skipped)} tensors ({told})"


def _report_of_row(reference: str, row: dict[str, Any], *, new: bool = False) -> ModelReport:
    return ModelReport(
        reference=reference,
        model=row["model"],
        revision=row["revision"] or "",
        scan_id=row["scan_id"],
        analysed=row["matrices"],
        skipped=lists_of_text(row["skipped_tensors"]),
        failed=row["failed"],
        new=new,
    )


def scan(
    references: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    store: str | os.PathLike[str] = "results",
    method: Method | None = None,
    ensembles: Sequence[Ensemble] = ENSEMBLES,
    draws: int = 1,
    pool: PoolOptions | None = None,
    force: bool = False,
    download: bool = False,
    observer: Observer | None = None,
) -> ScanReport:
    """Scan checkpoints into a store, on a local Ray or a running cluster; existing results are reused.

    Args:
        references: one or more checkpoints: a folder or file, `org/name[@revision]`, a URL, `delta:BASE..TUNED`.
        store: where the results are written; created if it does not exist.
        method: what is computed; None: the defaults of `Method`.
        ensembles: random controls: those of `ENSEMBLES` for each distinct shape, those of `MATRIX_ENSEMBLES` for each matrix.
        draws: number of draws of each control.
        pool: where and on how many workers; None: this machine, one worker per core (or GPU).
        force: scan again even if the store has the results.
        download: download whole files of the Hub into its cache instead of reading byte ranges.
        observer: receives the progress.

    Returns:
        Results of all references. One that cannot be opened has its error there and does not stop the others.

    Raises:
        ScannerError: nothing can continue: a store that cannot be written, no worker, no cluster.
        KeyboardInterrupt: interrupted; finished matrices are in the store, and the same call resumes.
    """
    unique = _references(references)
    observer, options = observer or Observer(), pool or PoolOptions()
    known = (*ENSEMBLES, *MATRIX_ENSEMBLES)
    unknown = [ensemble for ensemble in ensembles if ensemble not in known]
    if unknown:
        raise ScannerError(f"unknown ensemble {unknown[0]!r}: choose from {', '.join(known)}")
    if draws < 1:
        raise ConfigError("draws", f"must be at least 1, got {draws}")
    target = open_store(os.fspath(store), create=True)
    work = ScanWork(target, method or Method(), observer, ensembles, draws=draws)
    for reference in unique:
        work.add(reference, force=force, download=download)
    run([work], options, observer)
    return work.report(unique)


def _references(references: object) -> list[str]:
    """Return each reference once; a model or its weights in memory have no files, and so no identity."""
    named = [references] if isinstance(references, str | os.PathLike) else references
    wrong = [named]
    if isinstance(named, Iterable) and not isinstance(named, Mapping | bytes):
        found = list(named)
        wrong = [one for one in found if not isinstance(one, str | os.PathLike)]
        if not wrong:
            return list(dict.fromkeys(os.fspath(one) for one in found))
    raise ConfigError(
        "references",
        f"has a {type(wrong[0]).__name__}: name checkpoints by path, Hub id or URL. Save a model that is in memory first "
        "(save_pretrained, safetensors), or pass a matrix to `scanner.analyze`",
    )


class _Callable(ModuleType):
    """Makes the module callable, because `from scanner.engine import scan` finds the module and not its function."""

    def __call__(self, *arguments: Any, **options: Any) -> ScanReport:
        return scan(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
