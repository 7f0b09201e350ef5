"""One point of a curve: a model measured with something taken out of it, on an actor that keeps its replica.

What the workers of `ablate` and `slicing` have in common.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from scanner.experiments.evaluation import Measure, Scores, require_finite, summarise
from scanner.experiments.models import Head, ModelPlace, Precision
from scanner.experiments.running import Failure, Resident, one_line
from scanner.experiments.tokens import BATCH_TOKENS, Batches

#: What the point without removal is called in the column `set`.
NOTHING = "none"


@dataclass(frozen=True, kw_only=True)
class PointTask:
    """Measure a model as it is; subclasses say what is taken out of it first."""

    run_id: str
    point: str
    """Name of the point's file."""
    place: ModelPlace
    head: Head
    dtype: Precision
    config: Any
    """The model's configuration as transformers has it: of some formats it takes long to be read."""
    measure: Measure
    padding: int

    @property
    def name(self) -> str:
        """The point's file."""
        return self.point

    @property
    def cost(self) -> float:
        """All points cost one evaluation."""
        return 1.0

    @property
    def family(self) -> str | None:
        """Points of one family share what an actor keeps, beside its model."""
        return None

    @property
    def intact(self) -> bool:
        """Whether nothing is taken out: the baseline."""
        return True

    @property
    def columns(self) -> dict[str, object]:
        """What is taken out, as columns of `ablations`."""
        return {"set": NOTHING}

    @property
    def note(self) -> dict[str, str]:
        """What the file's metadata say beside the run's parameters."""
        return {}

    @property
    def shown(self) -> str:
        """For messages."""
        columns = self.columns
        return " ".join(str(columns[name]) for name in ("roles", "layers", "set") if columns.get(name))


@dataclass(frozen=True, kw_only=True)
class PointOutcome:
    """What came of a point; no scores where there was nothing to take out."""

    scores: Scores | None = None
    removed: int = 0
    total: int = 0
    seconds: float = 0.0
    batch_tokens: int | None = None
    failure: Failure | None = None


class PointWorker(Resident, ABC):
    """Base of the actors: one replica of the model, and what the measure remembers of it intact."""

    def __init__(self) -> None:
        super().__init__()
        self._prepared: tuple[str, Batches, Any] | None = None

    @abstractmethod
    def without(self, model: Any, task: Any) -> AbstractContextManager[tuple[int, int]]:
        """The model without what the task takes out, while the context lasts; yields how much of how much that is."""

    @abstractmethod
    def get_ready(self, model: Any, task: Any, batches: Batches) -> None:
        """Make what several points share. An error of it ends the run."""

    def run(self, task: PointTask) -> PointOutcome:
        """Measure a point; errors are outcomes."""
        with self.computing() as started:
            try:
                model = self.model(task.place, task.head, task.dtype, task.config)
                if self._prepared is None or self._prepared[0] != task.run_id:
                    batches = Batches(task.padding, BATCH_TOKENS[self._device])
                    self._prepared = (task.run_id, batches, task.measure.prepare(model, batches))
                _, batches, remembered = self._prepared
                if not task.intact:
                    self.get_ready(model, task, batches)
            except Exception as error:  # nothing escapes an actor: Ray's traceback would take the place of the line
                return PointOutcome(failure=Failure(message=one_line(error), hopeless=True))
            try:
                return self._measure(model, task, remembered, batches, started)
            except Exception as error:  # whatever a point does, the others go on, and a line says what it was
                return PointOutcome(failure=Failure(message=one_line(error), hopeless=task.intact))

    def _measure(self, model: Any, task: PointTask, remembered: Any, batches: Batches, started: float) -> PointOutcome:
        scores: Scores | None = None
        removed = total = 0
        if task.intact:
            scores = task.measure.scores(model, remembered, batches)
        else:
            with self.without(model, task) as (removed, total):
                if removed:
                    scores = task.measure.scores(model, remembered, batches)
        if scores is not None:
            require_finite(task.measure.metric, summarise(task.measure.metric, scores).value, model)
        return PointOutcome(
            scores=scores,
            removed=removed,
            total=total,
            seconds=time.perf_counter() - started,
            batch_tokens=batches.smallest,
        )
