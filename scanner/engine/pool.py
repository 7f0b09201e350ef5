"""Running tasks on a pool of Ray actors that may be lost: a bounded window over `ray.wait`, retries, and nothing about matrices.

Losses are Ray's system errors (a dead actor or node, no memory); they are retried. Errors of a task itself never get here: the
worker returns them as data.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Generic, TypeVar

import ray
from ray import exceptions as ray_errors

from scanner.engine.plan import Task
from scanner.errors import ScannerError

AnyTask = TypeVar("AnyTask", bound=Task)

#: Tasks given to a worker at a time: one computes, the other has its matrix read.
WINDOW = 2
#: How often a task is tried before its loss is recorded.
ATTEMPTS = 3
#: The local object store only passes small tables; Ray's default would reserve a third of the memory.
_LOCAL_OBJECT_STORE = 256 << 20
_LOCAL = "local"
#: How long nothing may happen before the user is told why.
WAITING_SECONDS = 60.0
#: How long a cluster may take to answer at all.
_ANSWER_SECONDS = 15.0

_LIBRARIES = ("ray", "torch", "numpy", "scipy", "duckdb", "pyarrow")

_LOSSES = (
    ray_errors.RayActorError,
    ray_errors.WorkerCrashedError,
    ray_errors.ObjectLostError,
    ray_errors.OutOfMemoryError,
    ray_errors.NodeDiedError,
    ray_errors.LocalRayletDiedError,
)


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """Where and on how many workers a scan runs."""

    address: str | None = None
    """A running cluster to join (`auto`, HOST:PORT, ray://...); None starts a local Ray, or joins the one RAY_ADDRESS names."""
    workers: int | None = None
    """How many actors; None: one a GPU where the cluster has GPUs, else one a CPU core."""
    gpus_per_worker: float | None = None
    """Share of a GPU that each actor takes; None: 1 where the cluster has GPUs, else 0."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ScannerError(f"--workers must be at least 1, got {self.workers}")
        if self.gpus_per_worker is not None and self.gpus_per_worker < 0:
            raise ScannerError(f"--gpus-per-worker cannot be negative, got {self.gpus_per_worker}")
        share = self.gpus_per_worker or 0.0
        if round(share, 4) != share or (share > 1 and share != int(share)):
            raise ScannerError(
                f"--gpus-per-worker is a share of one GPU, with at most 4 decimals, or a whole number, got {share}"
            )


@contextlib.contextmanager
def ray_session(options: PoolOptions) -> Iterator[None]:
    """A connection to Ray: the one this process has, a running cluster, or a local Ray that is shut down at the end.

    Raises:
        ScannerError: no cluster at the address, or Ray does not start here.
    """
    if ray.is_initialized():
        yield
        return
    try:
        _connect(_address(options))
        yield
    finally:
        ray.shutdown()


def _address(options: PoolOptions) -> str:
    return options.address or os.environ.get("RAY_ADDRESS") or _LOCAL


def _connect(address: str) -> None:
    local: dict[str, Any] = (
        {"include_dashboard": False, "object_store_memory": _LOCAL_OBJECT_STORE} if address == _LOCAL else {}
    )
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        _knock(address)
        # What Ray tells of lost workers and nodes goes to stdout, between the data; the observer tells of them anyway.
        ray._private.worker._worker_logs_enabled = False
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **local)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if address == _LOCAL:
            raise ScannerError(f"Ray does not start on this machine: {reason}; its logs are in /tmp/ray") from error
        raise ScannerError(
            f"no Ray cluster at {address!r}: {reason}; start one (`ray start --head`) or leave --address out to use this machine"
        ) from error
    except SystemExit as stopped:  # what Ray makes of SIGTERM while it starts
        raise KeyboardInterrupt from stopped
    finally:
        # Ray puts its own answer to SIGTERM, the end of the process, in the place of the caller's.
        if callable(terminate) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)


def _knock(address: str) -> None:
    """Raises OSError where nobody answers at HOST:PORT: Ray itself would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()


@dataclass(frozen=True, kw_only=True)
class PoolShape:
    """How many workers there will be and what each takes of the cluster."""

    workers: int
    gpus: float

    @classmethod
    def fit(cls, options: PoolOptions, resources: dict[str, float], tasks: int) -> PoolShape:
        """One worker a GPU (or fraction) where there are GPUs, else one a core; never more than tasks.

        A number the user asks for may exceed what is there now: the others wait, and an autoscaler sees that they do.
        """
        gpus = resources.get("GPU", 0.0)
        share = options.gpus_per_worker
        if share is None:
            share = 1.0 if gpus > 0 else 0.0
        if share > 1:
            slots = int(gpus // share)
        elif share > 0:
            slots = int(gpus) * int(1 / share + 1e-9)  # no worker gets its share from two GPUs
        else:
            slots = int(resources.get("CPU", 1.0))
        return cls(workers=min(options.workers or max(1, slots), tasks), gpus=share)


@dataclass(kw_only=True, eq=False)
class _Actor:
    handle: Any
    ready: bool = False
    refusals: int = 0  # times in a row that it or those it replaces did not come up
    running: list[str] = field(default_factory=list)  # names of the tasks it holds
    family: str | None = None  # of its last task


@dataclass(frozen=True, kw_only=True)
class _Call(Generic[AnyTask]):
    actor: _Actor
    task: AnyTask | None  # None: the call that waits for the actor to come up


def granted_device() -> str:
    """Where this actor computes. Ray may grant a GPU that torch cannot see (another vendor's, a test's): then it is the CPU."""
    import torch

    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"


def environment(shape: PoolShape) -> dict[str, Any]:
    """What a result says of how it came about: workers, nodes and the versions of the libraries."""
    nodes = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    return {
        "workers": shape.workers,
        "gpus_per_worker": shape.gpus,
        "nodes": nodes,
        "python": platform.python_version(),
        "machine": platform.machine(),
    } | {name: version(name) for name in _LIBRARIES}


def run_tasks(
    worker_class: type,
    tasks: Sequence[AnyTask],
    options: PoolOptions,
    *,
    on_start: Callable[[dict[str, Any]], None],
    on_done: Callable[[AnyTask, Any], Iterable[AnyTask] | None],
    on_lost: Callable[[AnyTask, str], None],
    on_workers: Callable[[int, int], None] = lambda alive, wanted: None,
    on_waiting: Callable[[str], None] = lambda reason: None,
    family: Callable[[AnyTask], str | None] = lambda task: None,
) -> None:
    """Run tasks, first to last, on a cluster or a local Ray that is shut down at the end.

    Args:
        worker_class: a class whose `run(task)` returns errors of the task as data, and whose `ready()` returns once it is up.
        tasks: at least one.
        options: where, and on how many workers.
        on_start: called with `environment` once the workers are on their way, before work begins.
        on_done: called with a task and its outcome; may return tasks that follow from it, which are next.
        on_lost: called with a task that took every worker with it, and why.
        on_workers: called whenever a worker comes up or is lost.
        on_waiting: told why nothing happens, once a minute while there is no worker.
        family: tasks of one family go to one worker, as long as there are others for the rest: it keeps what they share.

    Raises:
        ScannerError: no cluster, or no worker can start.
    """
    with ray_session(options):
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        shape = PoolShape.fit(options, resources, len(tasks))
        if _address(options) == _LOCAL and shape.gpus > resources.get("GPU", 0.0):
            raise ScannerError(
                f"--gpus-per-worker {shape.gpus:g}, and this machine has {resources.get('GPU', 0.0):g} GPUs: leave it out, or "
                "name a cluster with --address"
            )
        pool: Pool[AnyTask] = Pool(
            worker_class,
            shape,
            on_done=on_done,
            on_lost=on_lost,
            on_workers=on_workers,
            on_waiting=on_waiting,
            family=family,
        )
        pool.run(tasks, on_start=lambda: on_start(environment(shape)))


class Pool(Generic[AnyTask]):
    """A queue of tasks over actors of one class; one that is lost is replaced by a new one.

    Ray's own restarts would not do: they never end where a worker dies as it starts, never begin where its constructor raises, and
    the calls to a restarting actor fail until the cluster has noticed the loss of its node.

    `on_done(task, outcome)` and `on_lost(task, reason)` are called in the driver, in the order in which things happen, exactly one
    of them once for every task. `on_workers(alive, wanted)` whenever a worker comes up or is lost.
    """

    def __init__(
        self,
        worker_class: type,
        shape: PoolShape,
        *,
        on_done: Callable[[AnyTask, Any], Iterable[AnyTask] | None],
        on_lost: Callable[[AnyTask, str], None],
        on_workers: Callable[[int, int], None] = lambda alive, wanted: None,
        on_waiting: Callable[[str], None] = lambda reason: None,
        family: Callable[[AnyTask], str | None] = lambda task: None,
    ) -> None:
        self._family = family
        self._on_done, self._on_lost = on_done, on_lost
        self._on_workers, self._on_waiting = on_workers, on_waiting
        self._shape = shape
        self._queue: deque[AnyTask] = deque()
        self._attempts: Counter[str] = Counter()
        self._calls: dict[Any, _Call[AnyTask]] = {}
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": shape.gpus, "max_concurrency": WINDOW, "max_restarts": 0}
        self._actor_class: Any = ray.remote(**options)(worker_class)
        self._wanted = shape.workers
        self._actors: list[_Actor] = []

    def run(self, tasks: Sequence[AnyTask], *, on_start: Callable[[], None] = lambda: None) -> None:
        """Run all tasks, first to last as workers become free; `on_start` is called while the workers start.

        Raises:
            ScannerError: no worker can start.
        """
        self._queue.extend(tasks)
        try:
            self._actors += [self._start() for _ in range(self._wanted)]
            on_start()
            while self._queue or any(call.task is not None for call in self._calls.values()):
                self._dispatch()
                finished, _ = ray.wait(list(self._calls), num_returns=1, timeout=WAITING_SECONDS)
                if not finished and not self._alive:
                    self._on_waiting(self._what_is_missing())
                for reference in finished:
                    self._collect(reference, self._calls.pop(reference))
        finally:
            for actor in self._actors:
                ray.kill(actor.handle)

    def _start(self, *, refusals: int = 0) -> _Actor:
        actor = _Actor(handle=self._actor_class.remote(), refusals=refusals)
        self._calls[actor.handle.ready.remote()] = _Call(actor=actor, task=None)
        return actor

    def _replace(self, actor: _Actor) -> None:
        ray.kill(actor.handle)  # it may live on where Ray cannot reach it, and hold what the new one needs
        self._actors[self._actors.index(actor)] = self._start(refusals=actor.refusals)

    def _dispatch(self) -> None:
        """Fill the windows, one round of all workers at a time: nobody gets a second task while another has none."""
        for room in range(1, WINDOW + 1):
            for actor in self._actors:
                if not (self._queue and actor.ready and len(actor.running) < room):
                    continue
                place = self._next(actor)
                task = self._queue[place]
                if self._may_take(actor, task):
                    del self._queue[place]
                    actor.family = self._family(task)
                    actor.running.append(task.name)
                    self._calls[actor.handle.run.remote(task)] = _Call(actor=actor, task=task)

    def _next(self, actor: _Actor) -> int:
        """Where in the queue the task for an actor is: its family's next, else the first of no other's family, else the first."""
        if self._family(self._queue[0]) is None:
            return 0
        others = {other.family for other in self._actors if other is not actor}
        families = [self._family(task) for task in self._queue]
        if actor.family in families:
            return families.index(actor.family)
        return next((place for place, family in enumerate(families) if family not in others), 0)

    def _may_take(self, actor: _Actor, task: AnyTask) -> bool:
        """A task whose worker was lost runs alone on its next one: if that is lost, too, no innocent neighbour is."""
        names = [*actor.running, task.name]
        return len(names) == 1 or not any(self._attempts[name] for name in names)

    def _collect(self, reference: Any, call: _Call[AnyTask]) -> None:
        try:
            outcome = ray.get(reference)
        except _LOSSES as loss:
            self._lose(call, _reason(loss))
            return
        if call.task is None:
            call.actor.ready, call.actor.refusals = True, 0
            self._on_workers(self._alive, len(self._actors))
            return
        call.actor.running.remove(call.task.name)
        self._queue.extendleft(self._on_done(call.task, outcome) or ())

    def _lose(self, call: _Call[AnyTask], reason: str) -> None:
        actor, task = call.actor, call.task
        if task is None:
            self._refuse(actor, reason)
            return
        actor.running.remove(task.name)
        if actor in self._actors:  # else its other task was lost first
            self._replace(actor)
            self._on_workers(self._alive, len(self._actors))
        self._attempts[task.name] += 1
        if self._attempts[task.name] >= ATTEMPTS:
            self._on_lost(task, f"lost {ATTEMPTS} workers ({reason})")
        else:
            self._queue.append(task)

    def _refuse(self, actor: _Actor, reason: str) -> None:
        """A worker that did not come up (an error in its constructor, a node that went away): again, then without it."""
        actor.refusals += 1
        if actor.refusals < ATTEMPTS:
            self._replace(actor)
            return
        self._actors.remove(actor)
        if not self._actors:
            raise ScannerError(f"no worker can start: {reason}; mend that where the workers run, then scan again")

    def _what_is_missing(self) -> str:
        there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        has = f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs"
        return f"no worker yet: each needs 1 CPU and {self._shape.gpus:g} GPUs; the cluster has {has}, used by others or not"

    @property
    def _alive(self) -> int:
        return sum(actor.ready for actor in self._actors)


def _reason(loss: Exception) -> str:
    """What happened, in one line: of an error in a worker's constructor the last line of its traceback, else Ray's first."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(loss)).splitlines() if line.strip()]
    if getattr(loss, "actor_init_failed", False):
        return lines[-1]
    return f"{type(loss).__name__}: {lines[0].rstrip('.')}" if lines else type(loss).__name__
