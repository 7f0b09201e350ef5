"""Running work in this process, without Ray: one task after another, with as many BLAS threads as a worker has."""

from __future__ import annotations

import heapq
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import count
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

from scanner.engine.pool import LIBRARIES
from scanner.engine.task import Task
from scanner.engine.work import Observer, Work
from scanner.engine.worker import Worker
from scanner.errors import ConfigError, ScannerError
from scanner.extensions import load_extensions


def run_inline(work: Work, observer: Observer, *, device: str = "cpu") -> None:
    """Run work to its end. Nothing outlives the call: no process, no thread, no setting.

    A task for which the memory of a GPU does not suffice runs again on the CPU, as in a pool.

    Args:
        work: what is run; its store is the only place that is written.
        observer: receives the progress.
        device: where decompositions run: `cpu`, or a GPU as torch names it.

    Raises:
        ConfigError: there is no such device.
        ScannerError: nothing can continue.
    """
    check_device(device)
    worker = _Here(device, work.start)
    try:
        tasks = work.tasks()
        if tasks:
            items, cost = work.expected(tasks)
            observer.starting(items, cost, work.kept, work.unit)
            work.started(environment(device))
            observer.dispatching()
            _run_all(work, tasks, worker, observer)
        work.finish()
    finally:
        work.close()


def check_device(device: str) -> None:
    """Raise ConfigError unless torch can compute on a device in float64."""
    try:
        if torch.device(device).type == "meta":
            raise TypeError("it has no numbers")
        torch.ones(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            "device", f"is {device!r}, where torch cannot compute in float64 ({first}): use 'cpu'"
        ) from error


def environment(device: str) -> dict[str, Any]:
    """Describe how results were computed, with the keys of a pool: no workers, and the versions of the libraries."""
    return {
        "workers": 0,
        "gpus_per_worker": 0.0,
        "nodes": 1,
        "device": device,
        "python": platform.python_version(),
        "machine": platform.machine(),
    } | {name: version(name) for name in LIBRARIES if name != "ray"}


def _run_all(work: Work, tasks: Sequence[Task], worker: _Here, observer: Observer) -> None:
    numbers = count()

    def ranked(task: Task) -> tuple[bool, float, int, Task]:
        return not task.precedes, -task.cost, next(numbers), task

    waiting = [ranked(task) for task in tasks]
    heapq.heapify(waiting)
    while waiting:
        task = heapq.heappop(waiting)[-1]
        if not work.wanted(task):
            observer.task_done(task, failed=[])
            continue
        result = worker.run(task)
        if result.failure is not None and result.failure.full and worker.device != "cpu":
            observer.note(f"{task.name} does not fit into the memory of {worker.device}: it runs on the CPU")
            with worker.on_cpu():
                result = worker.run(task)
        if result.failure is None:
            work.check_inputs()
            stored = work.done(task, result.value)
        elif result.failure.fatal:
            raise ScannerError(result.failure.message)
        else:
            stored = work.failed(task, result.failure)
        observer.task_done(task, failed=[*stored.failed])
        for following in stored.following:
            heapq.heappush(waiting, ranked(following))


class _Here(Worker):
    """A worker that is the calling process."""

    def __init__(self, device: str, start: Callable[[], None] | None) -> None:
        load_extensions()
        self.device = device
        self.turn, self.shared = threading.Lock(), threading.Lock()
        self.large, self.computing, self.slots = set(), None, {}
        if start is not None:
            start()
        self.thread_pools = ThreadpoolController()

    @contextmanager
    def on_cpu(self) -> Iterator[None]:
        """Compute on the CPU inside a `with` block."""
        before, self.device = self.device, "cpu"
        try:
            yield
        finally:
            self.device = before
