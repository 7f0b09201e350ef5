"""Cost of tasks, groups of matrices that are read together, and the order of tasks that keeps all workers busy to the end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from scanner.checkpoint import MatrixRef


class Costly(Protocol):
    """What the order of tasks depends on."""

    @property
    def name(self) -> str:
        """Unique within a run."""

    @property
    def cost(self) -> float:
        """Expected work."""


AnyTask = TypeVar("AnyTask", bound=Costly)

#: A worker may take this long for any task, and this much longer for its cost: ten times what one core needs that does 2e10 units
#: per second, as those of the nodes in docs/cluster.md. The largest embedding of a 70B model has 4.5 hours.
_LIMIT_SECONDS, _LIMIT_COST_PER_SECOND = 900.0, 2e9
#: An interpreter with its libraries, in bytes.
_WORKER_BYTES = 600_000_000
#: Cost of an entry of a singular vector, which is sorted, and of a matrix, whatever its size; in units of `decomposition_cost`.
_ENTRY_UNITS, _MATRIX_UNITS = 800.0, 1.5e8
#: Smaller dimension from which on a matrix may get more than one BLAS thread.
_SPREAD_SIZE = 2048


def decomposition_cost(rows: int, cols: int) -> float:
    """Time of `decompose` up to a factor: lo^2 (3 hi + 9 lo), matrix products and eigenproblem weighted by measured speed."""
    lo, hi = min(rows, cols), max(rows, cols)
    return float(lo * lo * (3 * hi + 9 * lo))


def expected_seconds(rows: int, cols: int, rate: float) -> float:
    """Seconds that one core takes for the whole analysis of a matrix: decomposition, and tests of its singular vectors.

    Args:
        rows: of the matrix.
        cols: of the matrix.
        rate: what the core does, in units of `decomposition_cost` per second (`scanner.engine.rate`).
    """
    lo, hi = min(rows, cols), max(rows, cols)
    units = decomposition_cost(rows, cols) + _ENTRY_UNITS * lo * (lo + hi) + _MATRIX_UNITS
    return units / rate


def decomposition_limit(cost: float) -> float:
    """Seconds after which a worker that decomposes matrices of this cost is considered hung."""
    return _LIMIT_SECONDS + cost / _LIMIT_COST_PER_SECOND


def matrix_memory(rows: int, cols: int) -> float:
    """Bytes that a worker needs to decompose a matrix: four times the matrix in float64, and the libraries."""
    return float(4 * 8 * rows * cols + _WORKER_BYTES)


def task_memory(refs: Iterable[MatrixRef]) -> tuple[float, float]:
    """Bytes that a worker needs for matrices that are read together, in all and on a GPU.

    A decomposition takes four times the matrix in float64, beside the interpreter and its libraries. Matrices that are cut from one
    stored weight count as the whole weight, because it is decoded at once, and what is read together is in memory together.
    """
    by_weight: dict[tuple[object, ...], int] = {}
    stored: dict[tuple[str, int], int] = {}
    largest = 0
    # A head that is a factor of several products is in memory once.
    for one in dict.fromkeys(weight for ref in refs for weight in ref.weights):
        weight = (one.entry, one.companions)
        by_weight[weight] = by_weight.get(weight, 0) + one.rows * one.cols
        stored[one.entry.file, one.entry.start] = one.entry.size
        largest = max(largest, one.rows * one.cols)
    whole = 4 * 8 * max([largest, *by_weight.values()])
    return float(whole + sum(stored.values()) * (len(stored) > 1) + _WORKER_BYTES), float(4 * 8 * largest)


def spreads(rows: int, cols: int) -> bool:
    """Whether a decomposition is so large that more BLAS threads make it faster."""
    return min(rows, cols) >= _SPREAD_SIZE


def reads(refs: Iterable[MatrixRef], *, neighbors: int = 0) -> list[tuple[MatrixRef, ...]]:
    """Group matrices that are read together.

    Matrices cut from the same stored weight are always in one group. With `neighbors`, weights that follow each other in a file
    are in one group up to this number of bytes: over a network, a request costs more than the bytes of a small matrix.
    """
    by_weight: dict[tuple[object, ...], list[MatrixRef]] = {}
    for ref in refs:
        by_weight.setdefault((ref.entry, ref.companions), []).append(ref)
    groups: list[list[MatrixRef]] = []
    last_file, size = "", 0
    for weight in sorted(by_weight.values(), key=lambda group: (group[0].entry.file, group[0].entry.start)):
        entry = weight[0].entry
        if groups and entry.file == last_file and size + entry.size <= neighbors:
            groups[-1] += weight
            size += entry.size
        else:
            groups.append(weight)
            last_file, size = entry.file, entry.size
    return [tuple(group) for group in groups]


def largest_first(tasks: Iterable[AnyTask]) -> list[AnyTask]:
    """Order tasks by falling cost, so that no worker starts the largest when the others have finished; ties by name."""
    return sorted(tasks, key=lambda task: (-task.cost, task.name))
