"""The tasks of a scan: matrices that are read and analyzed, random controls, and weights whose bytes are compared.

What computes is in `scanner.engine.computing`, which only workers load: the driver has the tasks before torch could be imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scanner.checkpoint import MatrixRef, TensorEntry, TieCheck, read_matrices, resolve_ties
from scanner.checkpoint.sources.files import FileVersion
from scanner.checkpoint.sources.retry import may_pass
from scanner.engine import rows
from scanner.engine.plan import decomposition_cost, decomposition_limit, matrix_memory, spreads, task_memory
from scanner.engine.task import Context, Task
from scanner.errors import ChangedError
from scanner.rmt.vocabulary import ENSEMBLES, Ensemble, ScaleKind, SigmaKind
from scanner.store import finished_part

#: The seed of the first draw of all controls: they are stored by shape and shared by all scans.
CONTROL_SEED = 0
# Share of the time of a whole analysis that singular values alone take; see benchmarks/bench_values.py.
_VALUES_SHARE = 0.45


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
    head_mass: bool = False
    """Whether the masses of attention heads are tested."""
    values_only: bool = False
    """Whether there are no vectors."""
    metrics: tuple[str, ...] = ()
    """Names of the metrics of the spectrum that are computed."""
    versions: tuple[FileVersion, ...] = ()
    """Versions of the files that the matrices are read from."""

    @property
    def name(self) -> str:
        """Scan and matrix."""
        return f"{self.scan_id}/{self.refs[0].key}"

    @property
    def cost(self) -> float:
        """Work of the decompositions."""
        whole = sum(decomposition_cost(*ref.decomposed) for ref in self.refs)
        return _VALUES_SHARE * whole if self.values_only else whole

    @property
    def memory(self) -> float:
        """Four times the largest matrix in float64, and the libraries."""
        return self._needed[0]

    @property
    def device_memory(self) -> float:
        """Four times the largest matrix in float64."""
        return self._needed[1]

    @cached_property
    def _needed(self) -> tuple[float, float]:
        return task_memory(self.refs)

    @property
    def spreads(self) -> bool:
        """Whether one of the matrices is large."""
        return any(spreads(*ref.decomposed) for ref in self.refs)

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
        import torch

        from scanner.engine import computing

        error, stage = matrix if isinstance(matrix, Exception) else None, "read"
        if error is None:
            try:
                analysis, seconds = computing.analyze_timed(
                    context,
                    matrix,
                    sigma=self.sigma,
                    null=self.null,
                    scale=self.scale,
                    heads=computing.heads_of(ref),
                    head_mass=self.head_mass,
                    values_only=self.values_only,
                    metrics=self.metrics,
                )
            except torch.OutOfMemoryError:  # the pool runs the task again without a GPU
                raise
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
    def precedes(self) -> bool:
        """Matrices wait for the result."""
        return True

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
    def memory(self) -> float:
        """Four times the matrix in float64, and the libraries."""
        return matrix_memory(self.rows, self.cols)

    @property
    def device_memory(self) -> float:
        """Four times the matrix in float64."""
        return 32.0 * self.rows * self.cols

    @property
    def spreads(self) -> bool:
        """Whether the matrix is large."""
        return spreads(self.rows, self.cols)

    @property
    def time_limit(self) -> float:
        """Far more than the decomposition takes."""
        return decomposition_limit(self.cost)

    def run(self, context: Context) -> bytes:
        """Return the rows of `controls`, packed."""
        from scanner.engine import computing

        return computing.control(self, context)


@dataclass(frozen=True, kw_only=True)
class MatrixControls:
    """Result of a `MatrixControlTask`."""

    drawn: tuple[tuple[Ensemble, int, bytes], ...]
    """Ensemble, seed, and the rows as a part of the store, packed."""
    without_scale: str = ""
    """Why nothing can be drawn from the scale null of the matrix: then its rows are none."""


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
    values_only: bool = False
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
    def memory(self) -> float:
        """What the analysis of a matrix needs, with the weight and a control of it beside it in float64."""
        return task_memory((self.ref,))[0] + 16.0 * self.ref.rows * self.ref.cols

    @property
    def device_memory(self) -> float:
        """Four times the matrix in float64."""
        return task_memory((self.ref,))[1]

    @property
    def spreads(self) -> bool:
        """Whether the matrix is large."""
        return spreads(self.ref.rows, self.ref.cols)

    @property
    def items(self) -> int:
        """Number of controls."""
        return len(self.wanted)

    @property
    def time_limit(self) -> float:
        """Far more than the decompositions take."""
        return decomposition_limit(self.cost)

    def run(self, context: Context) -> MatrixControls:
        """Return the rows of `matrix_controls`; none for draws of the scale null of a matrix that has none, and why.

        Raises:
            ChangedError: the file is not the one that was hashed.
            CheckpointError: the matrix cannot be read.
        """
        from scanner.engine import computing

        return computing.matrix_controls(self, context)


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
    for weight in (weight for ref in refs for weight in ref.weights):
        side: tuple[str, MatrixRef] | None = (source, weight)
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
    from scanner.engine import computing

    computing.warm_up()
