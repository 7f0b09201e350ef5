"""The life cycle of every kind of work: plan, skip what is done, dispatch, stage, commit."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from scanner.engine.metrics import Metrics
from scanner.engine.options import PoolOptions
from scanner.engine.pool import Needs, run_tasks
from scanner.engine.session import ray_session
from scanner.engine.task import Failure, Result, Task
from scanner.engine.work import Observer, Stored, Work
from scanner.engine.worker import Worker
from scanner.errors import ScannerError, StoreError
from scanner.store import Heartbeat

#: Seconds between two heartbeats, in a local store and in one on a network.
_BEAT_SECONDS, _REMOTE_BEAT_SECONDS = 5.0, 20.0
#: Seconds for which a run that an exception ends waits until its heartbeat is removed: the store may be gone, and whoever sent
#: SIGTERM kills the process soon.
_HURRY = 3.0
#: Models that a heartbeat names.
_MOST_NAMES = 100


def run(works: Sequence[Work], options: PoolOptions, observer: Observer) -> None:
    """Run several kinds of work one after the other on one Ray, which is not started if nothing is left to do.

    Raises:
        ScannerError: nothing can continue: a store that cannot be written, no worker, no cluster, or a failure that every other
            task would share.
        KeyboardInterrupt: interrupted; results are in the store, and the same call resumes.
    """
    with ExitStack() as connected:
        for work in works:
            connected.callback(work.close)
        planned = [(work, work.tasks()) for work in works]
        for work, tasks in planned:
            if tasks:
                items, cost = work.expected(tasks)
                observer.starting(items, cost, work.kept, work.unit)  # before Ray starts, which takes seconds
                connected.enter_context(ray_session(options))
                _dispatch(work, tasks, options, observer, items, cost)
            work.finish()


def _dispatch(
    work: Work, tasks: Sequence[Task], options: PoolOptions, observer: Observer, items: int, cost: float
) -> None:
    status = _Status(work, items, cost)

    def done(task: Task, result: Result) -> Iterable[Task]:
        started = time.perf_counter()
        if result.failure is None:
            work.check_inputs()
        stored = work.done(task, result.value) if result.failure is None else fail(task, result.failure)
        status.count(task, result, failed=len(stored.failed), seconds=time.perf_counter() - started)
        observer.task_done(task, failed=[*stored.failed])
        return stored.following

    def fail(task: Task, failure: Failure) -> Stored:
        if failure.fatal:
            raise ScannerError(failure.message)
        return work.failed(task, failure)

    def lost(task: Task, reason: str) -> None:
        done(task, Result(failure=Failure(message=reason, error="WorkerLost")))

    def refused(task: Task, reason: str) -> None:
        done(task, Result(failure=Failure(message=reason, error="WorkerLost", transient=True)))

    def dropped(task: Task) -> None:
        status.count(task, Result(), failed=0, seconds=0.0)
        observer.task_done(task, failed=[])

    expected = [items, cost]
    told_more = False

    def more(patience: float) -> tuple[Sequence[Task], bool]:
        nonlocal told_more
        found = work.more(patience)
        if found.tasks or found.more != told_more:
            further = work.expected(found.tasks)
            expected[0] += further[0]
            expected[1] += further[1]
            told_more = found.more
            status.expect(int(expected[0]), expected[1], work.names)
            observer.expecting(int(expected[0]), expected[1], work.kept, more=found.more)
        return found.tasks, found.more

    def workers(alive: int, wanted: int) -> None:
        first = not status.begun and alive > 0
        status.workers(alive, wanted)
        observer.workers(alive, wanted)
        if first:
            observer.dispatching()

    with status.visible():
        run_tasks(
            Worker,
            tasks,
            options,
            arguments=(work.start,),
            on_start=work.started,
            on_done=done,
            on_lost=lost,
            on_refused=refused,
            outgrew=lambda result: result.failure is not None and result.failure.full,
            on_workers=workers,
            on_waiting=observer.waiting,
            on_hung=observer.hung,
            on_dropped=dropped,
            on_note=observer.note,
            needs=lambda task: Needs(
                memory=task.memory, device_memory=task.device_memory, spreads=task.spreads, cost=task.cost
            ),
            mixes=work.mixes,
            more=more,
            wanted=work.wanted,
            order=lambda task: (not task.precedes, -task.cost),
            family=lambda task: task.family,
            time_limit=lambda task: options.task_timeout or task.time_limit,
        )


class _Status:
    """The state of running work that other processes can read from the store."""

    def __init__(self, work: Work, items: int, cost: float) -> None:
        self._store = work.store
        self._lock = threading.Lock()
        self.begun = False
        self._run_id = uuid.uuid4().hex
        self._fixed: dict[str, Any] = {
            "run_id": self._run_id,
            "kind": work.kind,
            "what": tuple(work.names[:_MOST_NAMES]),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": datetime.now(UTC),
            "total": items,
            "cost": cost,
        }
        self._done = self._failed = self._alive = self._wanted = self._bytes_read = 0
        self._cost_done = 0.0
        self._stages: dict[str, float] = defaultdict(float)
        self._metrics = Metrics(work.kind)

    def count(self, task: Task, result: Result, *, failed: int, seconds: float) -> None:
        """Count a finished task; `seconds` is the time that staging its result took in the driver."""
        with self._lock:
            self._done += task.items
            self._failed += failed
            self._cost_done += task.cost
            self._bytes_read += result.bytes_read
            for stage, taken in result.stages.items():
                self._stages[stage] += taken
            self._stages["write"] += seconds
            left = self._fixed["total"] - self._done
        stages = {**result.stages, "write": seconds}
        self._metrics.task(items=task.items, failed=failed, bytes_read=result.bytes_read, stages=stages)
        self._metrics.queue(left)

    def expect(self, items: int, cost: float, names: Sequence[str]) -> None:
        """Note the totals and models that are known by now."""
        with self._lock:
            self._fixed |= {"total": items, "cost": cost, "what": tuple(names[:_MOST_NAMES])}

    def workers(self, alive: int, wanted: int) -> None:
        """Note the number of workers."""
        with self._lock:
            self.begun = self.begun or alive > 0
            self._alive, self._wanted = alive, wanted
            left = self._fixed["total"] - self._done
        self._metrics.workers(alive, wanted)
        self._metrics.queue(left)

    @contextmanager
    def visible(self) -> Iterator[None]:
        """Write a heartbeat now and then while the work runs, and remove it at the end."""
        ended = threading.Event()
        pause = _BEAT_SECONDS if self._store.local else _REMOTE_BEAT_SECONDS

        def beat() -> None:
            with suppress(StoreError):
                self._store.remove_expired_beats()
            while True:
                with suppress(StoreError):  # the next result that cannot be written ends the run with the reason
                    self._store.beat(self._heartbeat())
                if ended.wait(pause):
                    break
            # In this thread: otherwise a slow write could follow the removal.
            with suppress(StoreError):  # the next run removes what has expired
                self._store.end_beat(self._run_id)

        thread = threading.Thread(target=beat, name="rmtscan-heartbeat", daemon=True)
        thread.start()
        hurry: float | None = None
        try:
            yield
        except BaseException:
            hurry = _HURRY
            raise
        finally:
            self._metrics.ended()
            ended.set()
            thread.join(hurry)

    def _heartbeat(self) -> Heartbeat:
        with self._lock:
            return Heartbeat(
                **self._fixed,
                updated_at=datetime.now(UTC),
                done=self._done,
                failed=self._failed,
                cost_done=self._cost_done,
                workers=self._alive,
                wanted_workers=self._wanted,
                stages=dict(self._stages),
                bytes_read=self._bytes_read,
            )
