"""Runs without Ray: the same tasks, one after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from scanner.experiments import activation_run, point_run, running


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replaces the pool of actors by one worker here; the list fills with the tasks that were run."""
    ran: list[Any] = []

    def run_tasks(
        worker_class: type,
        tasks: Sequence[Any],
        options: object,
        *,
        on_start: Callable[[dict[str, Any]], None],
        on_done: Callable[[Any, Any], Any],
        **_: object,
    ) -> None:
        on_start({"workers": 1})
        worker = worker_class()
        queue = [*tasks]
        while queue:
            task = queue.pop(0)
            ran.append(task)
            queue[:0] = on_done(task, worker.run(task)) or []

    monkeypatch.setattr(running, "granted_device", lambda: "cpu")
    for module in (activation_run, point_run):
        monkeypatch.setattr(module, "run_tasks", run_tasks)
    return ran
