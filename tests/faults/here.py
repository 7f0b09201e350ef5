"""Run work in this process, without Ray, and let a test interfere between two tasks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scanner.engine import worker
from scanner.engine.task import Task
from scanner.engine.work import Work


def run_here(monkeypatch: pytest.MonkeyPatch, *works: Work, before: Callable[[Task], None] = lambda task: None) -> None:
    """Run works one after the other as `scanner.engine.run.run` does; `before` is called before each task."""
    monkeypatch.setattr(worker, "granted_device", lambda: "cpu")
    one = worker.Worker()
    planned = [(work, list(work.tasks())) for work in works]
    for work, queue in planned:
        open_ = True
        while queue or open_:
            found = work.more(0.0 if queue else 0.1)
            queue, open_ = [*queue, *found.tasks], found.more
            if not queue:
                continue
            task = queue.pop(0)
            before(task)
            result = one.run(task)
            if result.failure is None:
                work.check_inputs()
                queue += work.done(task, result.value).following
            else:
                queue += work.failed(task, result.failure).following
        work.finish()
