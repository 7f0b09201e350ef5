"""The actor of `rmtscan slicing`: projects around the norms of its model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from scanner.experiments.point_task import PointTask, PointWorker
from scanner.experiments.slicing import Order, bases, decile_slice, sliced
from scanner.experiments.tokens import Batches, Sequences


@dataclass(frozen=True, kw_only=True)
class SlicingTask(PointTask):
    """Measure the model without one tenth of the directions at its norms."""

    calibration: Sequences
    order: Order
    decile: int

    @property
    def intact(self) -> bool:
        """Never: a tenth is left out."""
        return False

    @property
    def columns(self) -> dict[str, object]:
        """Where, and which tenth."""
        return {"roles": f"{self.order} norm", "set": f"slice:{self.decile}"}


class SlicingWorker(PointWorker):
    """An actor that keeps the bases of one order."""

    def __init__(self) -> None:
        super().__init__()
        self._bases: tuple[tuple[str, Order], dict[str, torch.Tensor]] | None = None

    def get_ready(self, model: Any, task: SlicingTask, batches: Batches) -> None:
        """The bases of the task's order."""
        if self._bases is None or self._bases[0] != (task.run_id, task.order):
            self._bases = None  # two do not fit
            self._bases = ((task.run_id, task.order), bases(model, task.calibration, batches, task.order))

    @contextmanager
    def without(self, model: Any, task: SlicingTask) -> Iterator[tuple[int, int]]:
        """The model without the tenth; yields how many directions of how many."""
        assert self._bases is not None, "made ready"
        found = self._bases[1]
        dropped = {name: basis[:, decile_slice(basis.shape[0], task.decile)] for name, basis in found.items()}
        with sliced(model, dropped, task.order) as removed:
            yield removed, sum(basis.shape[0] for basis in found.values())
