"""The actor of `rmtscan ablate`: takes singular values out of its model's weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from scanner.checkpoint import MatrixRef
from scanner.checkpoint.names import printable
from scanner.errors import ScannerError
from scanner.experiments.placing import place_matrices
from scanner.experiments.point_task import PointTask, PointWorker
from scanner.experiments.removal import FactorCache, RemovalSet, removed
from scanner.experiments.tokens import Batches


@dataclass(frozen=True, kw_only=True)
class AblationTask(PointTask):
    """Measure the model without one set of singular values of some matrices."""

    refs: tuple[MatrixRef, ...]
    wanted: RemovalSet
    roles: str
    layers: str

    @property
    def family(self) -> str:
        """Its matrices: their SVDs are kept."""
        return f"{self.roles} {self.layers}"

    @property
    def intact(self) -> bool:
        """Never: a set is taken out."""
        return False

    @property
    def columns(self) -> dict[str, object]:
        """Roles, layers, the set and its seed."""
        return {"roles": self.roles, "layers": self.layers, "set": self.wanted.name, "seed": self.wanted.seed}

    @property
    def note(self) -> dict[str, str]:
        """Of a random set: beside which it stands."""
        return {"beside": self.wanted.beside} if self.wanted.beside else {}


class AblationWorker(PointWorker):
    """An actor that keeps the SVDs of the matrices it has met."""

    def __init__(self) -> None:
        super().__init__()
        self._cache: tuple[str, FactorCache] | None = None

    def get_ready(self, model: Any, task: AblationTask, batches: Batches) -> None:
        """A cache for the run's SVDs."""
        if self._cache is None or self._cache[0] != task.run_id:
            self._cache = (task.run_id, FactorCache(memory_for_factors(self._device)))

    @contextmanager
    def without(self, model: Any, task: AblationTask) -> Iterator[tuple[int, int]]:
        """The model without the set; yields how many singular values of how many."""
        assert self._cache is not None, "made ready"
        placed, unplaced = place_matrices(model, task.refs)
        if unplaced:
            name, why = next(iter(unplaced.items()))
            raise ScannerError(f"{len(unplaced)} matrices cannot be changed, {printable(name)} among them: {why}")
        with removed(model, placed, task.wanted, self._cache[1]) as counts:
            yield counts


def memory_for_factors(device: str) -> int:
    """Bytes that an actor may keep SVDs in: half of what a GPU has free, or its core's share of half of the machine's memory."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0]) // 2
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(memory // (2 * (os.cpu_count() or 1)))
