"""The actor that compares a matrix with what became of it; what goes wrong comes back as data."""

from __future__ import annotations

import dataclasses
import threading
import time
from dataclasses import dataclass

import pyarrow as pa
import torch
from threadpoolctl import ThreadpoolController

from scanner.checkpoint import MatrixRef, read_matrix
from scanner.engine.plan import decomposition_cost
from scanner.engine.pool import granted_device
from scanner.engine.rows import pack
from scanner.rmt import pairs
from scanner.rmt.decomposition import Decomposition, LowRank, decompose
from scanner.rmt.metrics import numerical_rank


@dataclass(frozen=True, kw_only=True)
class PairTask:
    """Read a matrix of one checkpoint and its counterpart of another, decompose both, and compare their vectors."""

    base_source: str
    base: MatrixRef
    tuned_source: str
    tuned: MatrixRef

    @property
    def name(self) -> str:
        """The tuned matrix: unique within a comparison."""
        return self.tuned.key

    @property
    def cost(self) -> float:
        """Work of both decompositions."""
        return 2.0 * decomposition_cost(self.base.rows, self.base.cols)


@dataclass(frozen=True, kw_only=True)
class PairOutcome:
    """What came of a pair: change, overlaps by rank and subspaces as packed tables, or one line that says what was wrong."""

    change: pairs.Change | None = None
    intruders: int | None = None
    vectors: bytes = b""
    """Columns k, singular_value_base, singular_value_tuned, u_overlap, u_match, v_overlap, v_match; a row for each rank."""
    subspaces: bytes = b""
    """Columns side, decile, dimensions, overlap, angle_smallest, angle_mean, angle_largest."""
    seconds: float = 0.0
    error: str = ""


class PairWorker:
    """One core or one GPU. Two calls may run at once: while one computes, the other reads its matrices and waits."""

    def __init__(self) -> None:
        self._device = granted_device()
        self._computing = threading.Lock()
        self._thread_pools = ThreadpoolController()

    def ready(self) -> str:
        """The device, once the worker is there."""
        return self._device

    def run(self, task: PairTask) -> PairOutcome:
        """Compare one pair. Only the loss of the worker raises, in the driver."""
        started = time.perf_counter()
        try:
            base, tuned = self._read(task.base_source, task.base), self._read(task.tuned_source, task.tuned)
            with self._computing, self._thread_pools.limit(limits=1):
                return dataclasses.replace(compare_pair(base, tuned), seconds=time.perf_counter() - started)
        except Exception as error:  # whatever a matrix does, the comparison goes on, and says what it was
            return PairOutcome(error=f"{type(error).__name__}: {error}")

    def _read(self, source: str, ref: MatrixRef) -> torch.Tensor:
        matrix = read_matrix(source, ref)
        dense = matrix.left.double() @ matrix.right.double() if isinstance(matrix, LowRank) else matrix
        return dense.to(self._device)


def compare_pair(base: torch.Tensor, tuned: torch.Tensor) -> PairOutcome:
    """Everything that two (m, n) matrices say of each other.

    Raises:
        ValueError: NaN or infinite entries.
        DecompositionError: a matrix has no sound decomposition.
    """
    change = pairs.weight_change(base, tuned)
    before = decompose(base)
    after = before if change.identical else decompose(tuned)
    rank_before, rank_after = _rank(before), _rank(after)
    columns: dict[str, object] = {
        "k": pa.array(range(len(after.singular_values)), pa.int32()),
        "singular_value_base": before.singular_values.cpu().numpy(),
        "singular_value_tuned": after.singular_values.cpu().numpy(),
    }
    # A decile with vectors of numerically zero values is no subspace of the matrix.
    known = min(rank_before, rank_after)
    sound = {decile for decile, ranks in pairs.decile_ranks(len(after.singular_values)) if ranks.stop <= known}
    intruders = 0
    subspaces: list[dict[str, object]] = []
    for side, old, new in (("u", before.left, after.left), ("v", before.right, after.right)):
        # The vectors of numerically zero values are arbitrary: they are like nothing, and nothing is like them.
        found = pairs.best_overlaps(old[:rank_before], new[:rank_after]) if rank_before and rank_after else None
        overlap = [] if found is None else found.overlap.tolist()
        match = [] if found is None else found.match.tolist()
        columns[f"{side}_overlap"] = pa.array(overlap + [None] * (len(new) - len(overlap)), pa.float32())
        columns[f"{side}_match"] = pa.array(match + [None] * (len(new) - len(match)), pa.int32())
        if side == "u" and found is not None:
            intruders = pairs.intruders(found)
        subspaces += [
            {"side": side, "decile": decile} | dataclasses.asdict(angles)
            for decile, angles in (pairs.decile_subspaces(old, new) if sound else ())
            if decile in sound
        ]
    return PairOutcome(
        change=change,
        intruders=intruders,
        vectors=pack(pa.table(columns)),
        subspaces=pack(pa.Table.from_pylist(subspaces)),
    )


def _rank(parts: Decomposition) -> int:
    return numerical_rank(parts.singular_values.cpu().numpy(), parts.left.shape[1], parts.right.shape[1])
