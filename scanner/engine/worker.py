"""The one Ray actor: it runs tasks of any kind, one computation at a time, and returns errors as data."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

from scanner.engine.pool import Ready, device_memory, granted_device, node_id
from scanner.engine.rate import measured_rate
from scanner.engine.task import Failure, Result, Task
from scanner.extensions import load_extensions

Made = TypeVar("Made")


class Worker:
    """One core or one GPU. Two tasks may run at once: while one computes, the other reads its input and waits."""

    def __init__(self, start: Callable[[], None] | None = None) -> None:
        """Prepare the process; `start` loads what the first task would otherwise wait for."""
        load_extensions()
        self.device = granted_device()
        self.turn = threading.Lock()
        self.large: set[WorkerContext] = set()  # tasks that more BLAS threads make faster
        self.computing: WorkerContext | None = None
        self.shared = threading.Lock()  # for both
        if start is not None:
            start()
        self.thread_pools = ThreadpoolController()  # knows the libraries that are loaded by now
        self.slots: dict[str, tuple[Hashable, Any]] = {}

    def ready(self) -> Ready:
        """Describe the worker, as soon as it is up."""
        return Ready(device=self.device, node=node_id(), device_memory=device_memory(self.device))

    def rates(self) -> dict[str, float]:
        """Measure what its device and one core do in float64: units of cost per second by device, 0.0 if it cannot."""
        with self.turn, self.thread_pools.limit(limits=1):
            return {device: measured_rate(device) for device in sorted({"cpu", self.device})}

    def run(self, task: Task, threads: int = 1) -> Result:
        """Run a task with so many BLAS threads. Only the loss of the worker itself raises, in the driver."""
        context = WorkerContext(self, threads)
        value, failure = None, None
        if task.spreads:
            self.large.add(context)
        try:
            value = task.run(context)
        except Exception as error:  # an error of one task must not stop the others; it is recorded
            failure = Failure.of(error)
        finally:
            self.large.discard(context)
        return Result(value=value, failure=failure, stages=dict(context.stages), bytes_read=context.bytes_read)

    def share(self, threads: int) -> None:
        """Change the number of BLAS threads of large tasks, also while they compute: other workers' cores are idle, or no more."""
        with self.shared:
            for context in [*self.large]:
                context.threads = threads
            if self.computing in self.large:
                # The BLAS of numpy and scipy, which takes most of the time, has one number for all threads of the process.
                for library in self.thread_pools.select(user_api="blas").lib_controllers:
                    # Since threadpoolctl 3.8, only the thread that has set a limit may change it, unless it gives this up.
                    give_up = getattr(library, "clear_controlling_thread", lambda **_: None)
                    give_up(force=True)
                    library.set_num_threads(threads)
                    give_up(force=True)


class WorkerContext:
    """What a worker offers to one task (`scanner.engine.task.Context`)."""

    def __init__(self, worker: Worker, threads: int = 1) -> None:
        self._worker, self.threads = worker, threads
        self.stages: dict[str, float] = defaultdict(float)
        self.bytes_read = 0

    @property
    def device(self) -> str:
        """Where tensors belong."""
        return self._worker.device

    @contextmanager
    def computing(self) -> Iterator[float]:
        """Wait for the turn of this task and limit BLAS to its threads; yields the start time in seconds."""
        with self._worker.turn, self._limited(), self.stage("compute"):
            yield time.perf_counter()

    @contextmanager
    def _limited(self) -> Iterator[None]:
        worker, limit = self._worker, ExitStack()
        with worker.shared:
            worker.computing = self
            # The limit applies to the thread that computes: Ray calls from a thread pool, and OpenMP counts threads for each.
            limit.enter_context(worker.thread_pools.limit(limits=self.threads))
        try:
            yield
        finally:
            with worker.shared:
                worker.computing = None
                limit.close()

    def resident(self, slot: str, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what the worker keeps in a slot; another key drops it first, because two might not fit into memory."""
        kept = self._worker.slots.get(slot)
        if kept is None or kept[0] != key:
            kept = None
            self._worker.slots.pop(slot, None)
            self._worker.slots[slot] = kept = (key, make())
        made: Made = kept[1]
        return made

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds spent inside, without those of other stages within it."""
        started, before = time.perf_counter(), sum(self.stages.values())
        try:
            yield
        finally:
            within = sum(self.stages.values()) - before
            self.stages[name] += time.perf_counter() - started - within

    def seconds(self, name: str) -> float:
        """Seconds counted under a stage so far."""
        return self.stages.get(name, 0.0)

    def count_bytes(self, count: int) -> None:
        """Count bytes read."""
        self.bytes_read += count
