"""What is to be done: one task a read or control, what it costs, and the order that keeps all workers busy to the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from scanner.checkpoint import MatrixRef
from scanner.rmt.ensembles import Ensemble
from scanner.rmt.sigma import SigmaKind

#: One seed for all controls: they are stored by shape and reused by every scan.
CONTROL_SEED = 0


class Task(Protocol):
    """A unit of work: small, picklable, the same result whenever and wherever it runs."""

    @property
    def name(self) -> str:
        """Unique within a run, for messages."""

    @property
    def cost(self) -> float:
        """Expected work, in arbitrary units."""


@dataclass(frozen=True, kw_only=True)
class MatrixTask:
    """Read matrices of one checkpoint that share a read (parts of a fused weight, heads, neighbours), and analyse each."""

    scan_id: str
    model: str
    revision: str
    source: str
    refs: tuple[MatrixRef, ...]
    sigma: SigmaKind
    null: str

    @property
    def name(self) -> str:
        """Scan and part: the place of the result."""
        return f"{self.scan_id}/{self.refs[0].key}"

    @property
    def cost(self) -> float:
        """Work of its decompositions."""
        return sum(decomposition_cost(ref.rows, ref.cols) for ref in self.refs)


@dataclass(frozen=True, kw_only=True)
class ControlTask:
    """Draw one random matrix of an ensemble and analyse it."""

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
        """Work of its decomposition."""
        return decomposition_cost(self.rows, self.cols)


def decomposition_cost(rows: int, cols: int) -> float:
    """Time of `decompose` up to a factor: lo^2 (3 hi + 9 lo), the products and the eigenproblem, weighted by measured speed."""
    lo, hi = min(rows, cols), max(rows, cols)
    return float(lo * lo * (3 * hi + 9 * lo))


def reads(refs: Iterable[MatrixRef], *, neighbours: int = 0) -> list[tuple[MatrixRef, ...]]:
    """Group matrices by what is read for them.

    Matrices cut from the same stored weight always go together. With `neighbours`, so do weights that follow each other in
    a file, up to so many bytes: over a network a request costs more than the bytes of a small matrix.
    """
    by_weight: dict[tuple[object, ...], list[MatrixRef]] = {}
    for ref in refs:
        by_weight.setdefault((ref.entry, ref.companions), []).append(ref)
    groups: list[list[MatrixRef]] = []
    last_file, size = "", 0
    for weight in sorted(by_weight.values(), key=lambda group: (group[0].entry.file, group[0].entry.start)):
        entry = weight[0].entry
        if groups and entry.file == last_file and size + entry.size <= neighbours:
            groups[-1] += weight
            size += entry.size
        else:
            groups.append(weight)
            last_file, size = entry.file, entry.size
    return [tuple(group) for group in groups]


AnyTask = TypeVar("AnyTask", bound=Task)


def largest_first(tasks: Iterable[AnyTask]) -> list[AnyTask]:
    """The order of work: by falling cost, so that no worker begins the largest when the others have finished; ties by name."""
    return sorted(tasks, key=lambda task: (-task.cost, task.name))


def control_tasks(shapes: Iterable[tuple[int, int]], ensembles: Iterable[Ensemble]) -> list[ControlTask]:
    """One control for every distinct shape and ensemble."""
    distinct = sorted(set(shapes))
    return [ControlTask(ensemble=e, rows=rows, cols=cols) for e in dict.fromkeys(ensembles) for rows, cols in distinct]
