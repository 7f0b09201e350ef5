"""An observer that records its calls and can run a function between tasks."""

from __future__ import annotations

from collections.abc import Callable

from scanner.engine import ModelReport, ScanObserver
from scanner.engine.task import Task


class Recorder(ScanObserver):
    """`after(number of finished tasks)` is called in the driver, between two tasks."""

    def __init__(self, after: Callable[[int], None] = lambda done: None) -> None:
        self.queues: list[int] = []
        self.kept = 0
        self.tasks: list[Task] = []
        self.failed: list[str] = []
        self.models: list[ModelReport] = []
        self.alive: list[int] = []
        self.notes: list[str] = []
        self._after = after

    def note(self, text: str) -> None:
        self.notes.append(text)

    def starting(self, *counts: object) -> None:
        tasks, _, kept, *_ = counts
        assert isinstance(tasks, int)
        assert isinstance(kept, int)
        self.queues.append(tasks)
        self.kept = kept

    def expecting(self, items: int, cost: float, kept: int, *, more: bool) -> None:
        self.queues[-1] = items
        self.kept = kept

    def workers(self, alive: int, wanted: int) -> None:
        self.alive.append(alive)

    def task_done(self, task: Task, *, failed: list[str]) -> None:
        self.tasks.append(task)
        self.failed += failed
        self._after(len(self.tasks))

    def model_done(self, model: ModelReport) -> None:
        self.models.append(model)
