"""The actor that reads and analyses matrices; everything that goes wrong with a matrix comes back as data."""

from __future__ import annotations

import dataclasses
import threading
import time
from dataclasses import dataclass
from typing import Any

from threadpoolctl import ThreadpoolController

from scanner.checkpoint import MatrixRef, read_matrices
from scanner.engine import rows
from scanner.engine.plan import ControlTask, MatrixTask
from scanner.engine.pool import granted_device
from scanner.rmt.analysis import Analysis, analyze
from scanner.rmt.ensembles import control
from scanner.store import finished_part


@dataclass(frozen=True, kw_only=True)
class MatrixResult:
    """What came of one matrix: its rows as a part of the store, or the row of its failure, packed by `rows.pack`."""

    key: str
    part: bytes = b""
    failure: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a task: a result for each of its matrices, or the rows of a control."""

    results: tuple[MatrixResult, ...] = ()
    controls: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class _Read:
    matrix: Any = None
    seconds: float = 0.0
    error: Exception | None = None


@dataclass(frozen=True, kw_only=True)
class _Timed:
    analysis: Analysis
    seconds: float


class Worker:
    """One core or one GPU. Two calls may run at once: while one computes, the other reads its matrix and waits."""

    def __init__(self) -> None:
        self._device = granted_device()
        self._computing = threading.Lock()
        self._thread_pools = ThreadpoolController()
        # The first analysis of a process loads libraries; it belongs to the start and not to somebody's matrix.
        rows.warm_up(analyze([[1.0, 0.0], [0.0, 2.0]]))

    def ready(self) -> str:
        """The device, once the worker is there."""
        return self._device

    def run(self, task: MatrixTask | ControlTask) -> Outcome:
        """Carry out a task. An error of the matrix is an outcome; only the loss of the worker raises, in the driver."""
        if isinstance(task, ControlTask):
            drawn = control(task.ensemble, task.rows, task.cols, task.seed)
            return Outcome(controls=rows.pack(rows.control_rows(task, self._analyze(drawn).analysis)))
        matrices = self._read(task)
        return Outcome(
            results=tuple(self._result(task, ref, read) for ref, read in zip(task.refs, matrices, strict=True))
        )

    def _read(self, task: MatrixTask) -> list[_Read]:
        """Every matrix of the task, or the error in its place; where reading all at once fails, each by itself."""
        started = time.perf_counter()
        try:
            matrices = read_matrices(task.source, task.refs)
        except Exception as error:  # whatever a matrix does, the scan goes on, and a row says what it was
            if len(task.refs) == 1:
                return [_Read(error=error)]
            return [read for ref in task.refs for read in self._read(dataclasses.replace(task, refs=(ref,)))]
        seconds = (time.perf_counter() - started) / len(matrices)
        return [_Read(matrix=matrix, seconds=seconds) for matrix in matrices]

    def _result(self, task: MatrixTask, ref: MatrixRef, read: _Read) -> MatrixResult:
        error, stage = read.error, "read"
        if error is None:
            try:
                timed = self._analyze(read.matrix, sigma=task.sigma, null=task.null)
            except Exception as raised:  # as above
                error, stage = raised, "analyse"
        if error is not None:
            row = rows.failure_row(task, ref, stage=stage, error=type(error).__name__, message=str(error))
            return MatrixResult(key=ref.key, failure=rows.pack(row))
        row = rows.matrix_row(task, ref, timed.analysis, seconds=read.seconds + timed.seconds, device=self._device)
        vectors = rows.vector_rows(task, ref, timed.analysis)
        # Packed here, where the cores are: the driver only puts the bytes down.
        return MatrixResult(key=ref.key, part=finished_part(task.scan_id, ref.key, row, vectors))

    def _analyze(self, matrix: Any, **method: Any) -> _Timed:
        # Thread counts are limited in the thread that computes: Ray calls from a pool of them, and OpenMP counts for each.
        with self._computing, self._thread_pools.limit(limits=1):
            started = time.perf_counter()
            analysis = analyze(matrix, device=self._device, **method)
            return _Timed(analysis=analysis, seconds=time.perf_counter() - started)
