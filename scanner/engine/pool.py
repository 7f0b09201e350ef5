"""A pool of Ray actors that may be lost or hang: a bounded window over `ray.wait`, retries, time limits.

Losses are Ray's system errors (a dead actor or node, not enough memory) and workers that exceed a time limit; their tasks are
retried. Errors of a task itself never get here: the worker returns them as data.
"""

from __future__ import annotations

import heapq
import math
import platform
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray import exceptions as ray_errors

from scanner.engine.options import PoolOptions
from scanner.engine.placement import Count, Node, beside_gpus, cores_of, largest_cost, largest_node, size_of, workers_of
from scanner.engine.session import LOCAL, address_of, check_local_ray, ray_session
from scanner.errors import ScannerError


class Named(Protocol):
    """What the pool needs of a task: a name that is unique within the run."""

    @property
    def name(self) -> str:
        """Unique within the run."""


AnyTask = TypeVar("AnyTask", bound=Named)

#: Tasks given to a worker at a time: one computes while the other reads its input.
WINDOW = 2
#: How often a task is tried before it is recorded as lost.
ATTEMPTS = 3
#: Seconds without any worker that has a task before the reason is reported.
WAITING_SECONDS = 60.0
#: Seconds that the process of a worker may take until it is ready; loading torch from a slow disk takes minutes.
START_SECONDS = 900.0
#: With so many tasks per worker in the queue, every worker takes what comes: the end of the run is not near.
_LAST_TASKS = 8
#: Seconds between two looks at what gives no sign of itself: the local Ray, and workers that have not started.
_LOOK_SECONDS = 5.0
#: Longest wait for results, in seconds, while a worker has nothing to do and further tasks may be found, and for these tasks.
_IDLE_SECONDS = 0.05
#: Shortest wait for results, in seconds, when a time limit is about to expire.
_SHORTEST_WAIT = 0.05

LIBRARIES = ("ray", "torch", "numpy", "scipy", "duckdb", "pyarrow")
"""The packages whose versions are stored with every result."""

_LOSSES = (
    ray_errors.RayActorError,
    ray_errors.WorkerCrashedError,
    ray_errors.ObjectLostError,
    ray_errors.OutOfMemoryError,
    ray_errors.NodeDiedError,
    ray_errors.LocalRayletDiedError,
)


@dataclass(frozen=True, kw_only=True)
class PoolShape:
    """Number of workers, and the resources that each of them takes."""

    workers: int
    gpus: float
    mixed: bool = False
    """Only some of the workers take GPUs: as many as there are GPUs worth using. The others take cores."""

    @classmethod
    def fit(
        cls, options: PoolOptions, resources: dict[str, float], tasks: int | None, *, mixes: bool = False
    ) -> PoolShape:
        """One worker per GPU (or share of one) where there are GPUs, else one per core; never more than tasks (None: unknown).

        The number that a user asks for may exceed the present resources: the rest waits, which an autoscaler notices. With `mixes`,
        and unless the share of a GPU is given, there are workers on the cores beside the GPUs, too.
        """
        gpus = resources.get("GPU", 0.0)
        share = options.gpus_per_worker
        mixed = mixes and share is None
        if share is None:
            share = 1.0 if gpus > 0 or mixed else 0.0
        if mixed:
            slots = int(resources.get("CPU", 1.0))
        elif share > 1:
            slots = int(gpus // share)
        elif share > 0:
            slots = int(gpus) * int(1 / share + 1e-9)  # no worker gets its share from two GPUs
        else:
            slots = int(resources.get("CPU", 1.0))
        workers = options.workers or max(1, slots)
        return cls(workers=workers if tasks is None else min(workers, tasks), gpus=share, mixed=mixed)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What a worker tells when it has started."""

    device: str
    """`cpu` or `cuda`."""
    node: str = ""
    """Id of the node that it runs on."""
    device_memory: float | None = None
    """Free bytes of its GPU; None: it has none."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a task needs of its worker."""

    memory: float = 0.0
    """Bytes; 0: unknown."""
    device_memory: float = 0.0
    """Bytes of a GPU, if it runs on one."""
    spreads: bool = False
    """Whether more BLAS threads make it faster."""
    cost: float = 0.0
    """Expected work, in the units in which the rates of workers are measured; 0: unknown."""


@dataclass(frozen=True, kw_only=True)
class _Held:
    """What the pool knows of a task that a worker has."""

    limit: float | None
    """Its time limit in seconds."""
    needs: Needs


#: Units of cost per second by node and device, measured once by a worker there.
_rates: dict[tuple[str, str], float] = {}


@dataclass(kw_only=True, eq=False)
class _Actor:
    handle: Any
    memory: float = 0.0  # declared bytes; 0: none
    cores: int = 1
    gpus: float = 0.0
    state: Ready | None = None
    leaving: bool = False  # it gets no further tasks, and ends when it has none
    ready: bool = False
    rate: float | None = None  # units of cost per second; None: not measured
    refusals: int = 0  # consecutive failures to start, of this actor and of those it replaces
    running: dict[str, _Held] = field(default_factory=dict)  # by name; all but the first only read, and wait
    threads: int = 1  # of its computation, as far as it has been told
    since: float = 0.0  # when it became busy or last returned something
    process_since: float | None = None  # when its process was first seen
    killed: str = ""  # why the pool killed it
    family: str | None = None  # of its last task


@dataclass(frozen=True, kw_only=True)
class _Call(Generic[AnyTask]):
    actor: _Actor
    task: AnyTask | None  # None: the call that waits for the actor to start, or measures it
    measures: bool = False


def granted_device() -> str:
    """Return the device of this actor. Ray may grant a GPU that torch cannot use (of another vendor, of a test): then the CPU."""
    import torch

    return "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"


def node_id() -> str:
    """Return the id of the node that this actor runs on."""
    return str(ray.get_runtime_context().get_node_id())


def device_memory(device: str) -> float | None:
    """Return the free bytes of the GPU of this actor, or its share of them; None on a CPU."""
    if device == "cpu":
        return None
    import torch

    free, _ = torch.cuda.mem_get_info()
    assigned: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    return float(free) * min(1.0, assigned.get("GPU", 1.0))


def environment(shape: PoolShape) -> dict[str, Any]:
    """Describe how a result was computed: workers, nodes and the versions of the libraries."""
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    nodes = len(alive)
    gpus = any(node["Resources"].get("GPU", 0.0) for node in alive)
    return {
        "workers": shape.workers,
        "gpus_per_worker": shape.gpus if gpus or not shape.mixed else 0.0,
        "nodes": nodes,
        "python": platform.python_version(),
        "machine": platform.machine(),
    } | {name: version(name) for name in LIBRARIES}


def run_tasks(
    worker_class: type,
    tasks: Sequence[AnyTask],
    options: PoolOptions,
    *,
    on_start: Callable[[dict[str, Any]], None],
    on_done: Callable[[AnyTask, Any], Iterable[AnyTask] | None],
    on_lost: Callable[[AnyTask, str], None],
    on_refused: Callable[[AnyTask, str], None] | None = None,
    outgrew: Callable[[Any], bool] = lambda result: False,
    on_workers: Callable[[int, int], None] = lambda alive, wanted: None,
    on_waiting: Callable[[str], None] = lambda reason: None,
    on_hung: Callable[[list[str], float], None] = lambda names, seconds: None,
    on_dropped: Callable[[AnyTask], None] = lambda task: None,
    more: Callable[[float], tuple[Sequence[AnyTask], bool]] = lambda patience: ((), False),
    wanted: Callable[[AnyTask], bool] = lambda task: True,
    order: Callable[[AnyTask], Any] = lambda task: 0,
    on_note: Callable[[str], None] = lambda text: None,
    family: Callable[[AnyTask], str | None] = lambda task: None,
    time_limit: Callable[[AnyTask], float | None] = lambda task: None,
    needs: Callable[[AnyTask], Needs] = lambda task: Needs(),
    mixes: bool = False,
    arguments: tuple[Any, ...] = (),
) -> None:
    """Run tasks, first to last, on a cluster or on a local Ray that is shut down at the end.

    Args:
        worker_class: a class whose `run(task)` returns errors of the task as data, and whose `ready()` returns once it has started.
            If tasks spread, `run` takes a number of BLAS threads, too, and `share(threads)` changes it while a task runs.
        tasks: at least one.
        options: where, and on how many workers.
        on_start: called with `environment` while the workers start, before the first task runs.
        on_done: called with a task and its result; may return tasks that follow from it, which are run next.
        on_lost: called with a task that lost `ATTEMPTS` workers, and the reason.
        on_refused: called with a task for which no worker with enough memory can start, and the reason.
        outgrew: whether a result says that the memory of a GPU did not suffice: the task runs again on a worker without one.
        on_workers: called with the numbers of running and wanted workers whenever a worker starts or is lost.
        on_waiting: called once a minute, while tasks wait and no worker has one, with the resources that are missing.
        on_hung: called with the tasks of a worker that exceeded its time limit, and the limit in seconds.
        on_dropped: called instead of `on_done` and `on_lost` with a task that is no longer `wanted` when its turn comes.
        more: returns further tasks, and whether there may be others later; waits for a task for the given time (seconds).
        wanted: whether a task still has to be run.
        order: key of the order of further tasks among those that wait.
        on_note: called with one line about the workers that a user should know.
        family: tasks of one family go to the same worker, as long as the other workers have other tasks.
        time_limit: seconds without a result after which the worker of a task is replaced; None: no limit.
        needs: memory and threads of a task: workers are as large as the tasks, and as many as fit the nodes.
        mixes: workers without a GPU run beside those with one, unless the share of a GPU is given. The class then has a method
            `rates()` that returns units of cost per second by device, and GPUs that are slower than a core are not used.
        arguments: positional arguments of the constructor of `worker_class`.

    Raises:
        ScannerError: there is no cluster, or no worker can start.
    """
    with ray_session(options):
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        further, not_all = more(0.0)  # found while Ray started
        tasks = [*heapq.merge(tasks, further, key=order)]
        shape = PoolShape.fit(options, resources, None if not_all else len(tasks), mixes=mixes)
        if address_of(options) == LOCAL and not shape.mixed and shape.gpus > resources.get("GPU", 0.0):
            raise ScannerError(
                f"`gpus_per_worker` is {shape.gpus:g}, but this machine has {resources.get('GPU', 0.0):g} GPUs: omit it, or give "
                "the address of a cluster"
            )
        pool: Pool[AnyTask] = Pool(
            worker_class,
            shape,
            on_done=on_done,
            on_lost=on_lost,
            on_refused=on_refused,
            outgrew=outgrew,
            on_workers=on_workers,
            on_waiting=on_waiting,
            on_hung=on_hung,
            on_dropped=on_dropped,
            more=more,
            wanted=wanted,
            order=order,
            on_note=on_note,
            family=family,
            time_limit=time_limit,
            needs=needs,
            nodes=nodes_of_cluster,
            asked=options.workers,
            share_cores=options.share_cores,
            arguments=arguments,
        )
        pool.run(tasks, on_start=lambda: on_start(environment(replace(shape, workers=pool.wanted))))


def nodes_of_cluster() -> list[Node]:
    """Return the machines of the cluster that are there now."""
    found = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        has = node["Resources"]
        if node["Alive"]:
            memory = has.get("memory", math.inf)
            found.append(Node(id=node["NodeID"], cpus=has.get("CPU", 0.0), gpus=has.get("GPU", 0.0), memory=memory))
    return found


class Pool(Generic[AnyTask]):
    """A queue of tasks over actors of one class; a lost or hung actor is replaced by a new one.

    Ray's own restarts are not sufficient: they never end if a worker dies while it starts, never begin if its constructor raises,
    and calls to a restarting actor fail until the cluster has noticed the loss of its node.

    `on_done(task, result)`, `on_lost(task, reason)` and `on_refused(task, reason)` are called in the driver, in the order of
    events, exactly one of them once for every task, or `on_dropped(task)`.
    """

    def __init__(
        self,
        worker_class: type,
        shape: PoolShape,
        *,
        on_done: Callable[[AnyTask, Any], Iterable[AnyTask] | None],
        on_lost: Callable[[AnyTask, str], None],
        on_refused: Callable[[AnyTask, str], None] | None = None,
        outgrew: Callable[[Any], bool] = lambda result: False,
        on_workers: Callable[[int, int], None] = lambda alive, wanted: None,
        on_waiting: Callable[[str], None] = lambda reason: None,
        on_hung: Callable[[list[str], float], None] = lambda names, seconds: None,
        on_dropped: Callable[[AnyTask], None] = lambda task: None,
        more: Callable[[float], tuple[Sequence[AnyTask], bool]] = lambda patience: ((), False),
        wanted: Callable[[AnyTask], bool] = lambda task: True,
        order: Callable[[AnyTask], Any] = lambda task: 0,
        on_note: Callable[[str], None] = lambda text: None,
        family: Callable[[AnyTask], str | None] = lambda task: None,
        time_limit: Callable[[AnyTask], float | None] = lambda task: None,
        needs: Callable[[AnyTask], Needs] = lambda task: Needs(),
        nodes: Callable[[], list[Node]] = list,
        asked: int | None = None,
        share_cores: bool = False,
        arguments: tuple[Any, ...] = (),
    ) -> None:
        self._family, self._time_limit, self._arguments = family, time_limit, arguments
        self._on_hung, self._on_dropped = on_hung, on_dropped
        self._more, self._still_wanted, self._order = more, wanted, order
        self._open = True  # whether further tasks may be found
        self._on_done, self._on_lost, self._on_refused = on_done, on_lost, on_refused or on_lost
        self._outgrew = outgrew
        self._outgrown: set[str] = set()  # tasks for which the memory of a GPU did not suffice
        self._refused = ""  # why no worker without a GPU can start
        self._ended: list[_Actor] = []  # to make room for one without a GPU
        self._on_workers, self._on_waiting = on_workers, on_waiting
        self._shape = shape
        self._queue: deque[AnyTask] = deque()
        self._attempts: Counter[str] = Counter()
        self._calls: dict[Any, _Call[AnyTask]] = {}
        self._needs, self._nodes, self._asked, self._share_cores = needs, nodes, asked, share_cores
        self._on_note = on_note
        self._class = worker_class
        self._size = 0.0  # memory of new workers; 0: none is declared
        self._cores = 1  # cores of new workers
        self._node_memory = math.inf  # of the largest node
        self._warned = False
        self._slow: set[str] = set()  # nodes whose GPUs are slower than a core
        self._known: set[str] = set()  # nodes that have been given workers
        self.wanted = shape.workers
        """Number of workers at the start."""
        self._actors: list[_Actor] = []

    def run(self, tasks: Sequence[AnyTask], *, on_start: Callable[[], None] = lambda: None) -> None:
        """Run all tasks, first to last as workers become free; `on_start` is called while the workers start.

        Raises:
            ScannerError: no worker can start.
        """
        self._queue.extend(tasks)
        try:
            planned = self._plan(self._queue)
            self.wanted = planned.total
            self._start_up_to(planned)
            on_start()
            told = looked = time.monotonic()
            while True:
                self._look_for_more()
                self._dispatch()
                if self._is_stuck():
                    self._resize(stuck=True)
                    while self._refused and self._is_stuck():
                        self._on_refused(self._queue.popleft(), f"no worker without a GPU can start: {self._refused}")
                    if self._is_stuck():
                        self._add_without_gpu()
                if not (self._queue or self._open or any(call.task is not None for call in self._calls.values())):
                    break
                finished: list[Any] = []
                if self._calls:
                    finished, _ = ray.wait(list(self._calls), num_returns=1, timeout=self._longest_wait())
                due = time.monotonic() - looked >= _LOOK_SECONDS
                answers = check_local_ray(look=due)  # before its processes are asked for anything
                for reference in finished:
                    if reference in self._calls:
                        self._collect(reference, self._calls.pop(reference))
                self._kill_hung()
                self._end_leaving()
                now = time.monotonic()
                if due and answers:
                    looked = now
                    self._kill_not_started()
                    self._resize()
                    self._make_room()
                if finished or any(actor.running for actor in self._actors) or (self._alive and not self._queue):
                    told = now
                elif now - told >= WAITING_SECONDS:
                    told = now
                    self._on_waiting(self._missing_resources())
        finally:
            for actor in self._actors:
                ray.kill(actor.handle)

    def _look_for_more(self) -> None:
        """Queue further tasks, each before smaller ones; waits for them only if nothing else can happen."""
        found, self._open = self._more(0.0 if self._calls or self._queue else _IDLE_SECONDS)
        if found:
            self._queue = deque(heapq.merge(self._queue, found, key=self._order))

    def _plan(self, tasks: Iterable[AnyTask]) -> Count:
        """Set size and cores of new workers by the largest of the tasks, and return how many workers there should be."""
        needed = max((self._needs(task).memory for task in tasks), default=0.0)
        nodes = self._nodes()
        self._node_memory = largest_node(nodes) if needed else math.inf
        if needed > self._node_memory and not self._warned:
            self._warned = True
            self._on_note(
                f"a matrix needs about {needed / 1e9:.1f} GB of memory, and the largest node has {self._node_memory / 1e9:.1f} GB "
                "for workers: it runs alone there, and fails if the memory does not suffice"
            )
        self._size = min(size_of(needed), self._node_memory)
        self._known = self._known or {node.id for node in nodes}
        fits = self._count(nodes)
        self._cores = self._cores_with(fits, nodes) if needed else 1
        if self._asked is not None or not (nodes and needed):
            return self._exactly(fits, self._shape.workers)
        return fits.at_most(self._shape.workers) if fits.total else self._exactly(fits, 1)

    def _cores_with(self, fits: Count, nodes: Sequence[Node]) -> int:
        """Return how many cores a worker without a GPU takes: those that memory leaves idle, and never more than a user asked for.

        Args:
            fits: how many workers of the present size fit the nodes.
            nodes: the machines.
        """
        if not (self._share_cores and fits.cpu):
            return 1
        cores = cores_of(self._left_by_gpus(nodes)[1], self._size)
        if self._asked is not None:
            cores = min(cores, (self._asked - fits.gpu) // fits.cpu)
        return max(1, cores)

    def _left_by_gpus(self, nodes: Sequence[Node]) -> tuple[int, list[Node]]:
        """Return how many workers of the present size take a GPU, and what is left of the nodes for the others."""
        if not self._shape.gpus:
            return 0, [*nodes]
        return beside_gpus(nodes, self._size, self._shape.gpus, self._slow)

    def _count(self, nodes: Sequence[Node]) -> Count:
        """Return how many workers of the present size fit the nodes."""
        gpu, left = self._left_by_gpus(nodes)
        others = self._shape.mixed or not self._shape.gpus
        return Count(gpu=gpu, cpu=workers_of(left, self._size, 0.0) if others else 0)

    def _exactly(self, fits: Count, number: int) -> Count:
        """Return a number of workers, whether or not they fit: those beyond wait for a node."""
        gpu = min(fits.gpu, number) if self._shape.mixed else number if self._shape.gpus else 0
        return Count(gpu=gpu, cpu=number - gpu)

    def _start_up_to(self, planned: Count) -> None:
        """Start the workers that are missing, those with a GPU first: a worker without one must not take the core beside it."""
        for wanted, gpus in ((planned.gpu, self._shape.gpus), (planned.cpu, 0.0)):
            there = sum(bool(actor.gpus) == bool(gpus) for actor in self._actors if not actor.leaving)
            self._actors += [self._start(gpus=gpus) for _ in range(wanted - there)]

    def _start(self, *, gpus: float = 0.0, refusals: int = 0, like: _Actor | None = None) -> _Actor:
        memory, cores = self._size, 1 if gpus else self._cores
        if like is not None:
            memory, cores, gpus = like.memory, like.cores, like.gpus
        options: dict[str, Any] = {"num_cpus": cores, "num_gpus": gpus, "max_concurrency": WINDOW, "max_restarts": 0}
        if memory:
            options["memory"] = int(memory)
        made: Any = ray.remote(**options)(self._class)
        actor = _Actor(handle=made.remote(*self._arguments), refusals=refusals, memory=memory, cores=cores, gpus=gpus)
        self._calls[actor.handle.ready.remote()] = _Call(actor=actor, task=None)
        return actor

    def _resize(self, *, stuck: bool = False) -> None:
        """Start workers on nodes that have joined, and replace workers if a task needs larger ones, or others would do more.

        Others do more if half as many again fit, because the tasks that are left are smaller, or if they take cores that are idle.

        A worker that is replaced gets no further tasks and ends when it has none; its successor waits for its resources in Ray.
        """
        if not self._queue:
            return
        self._welcome()
        current = [actor for actor in self._actors if not actor.leaving]
        if not any(actor.memory for actor in current):
            return
        # If a user has asked for more workers than fit, some of them wait for a node that may never join: they do not count.
        nodes = self._nodes()
        running = min(self._count(nodes).total, len(current))
        if running >= self._shape.workers and not stuck:
            return
        needed = max(self._needs(task).memory for task in self._queue)
        largest = max((actor.memory for actor in current), default=0.0)
        grows = min(needed, self._node_memory) > largest
        before = (self._size, self._cores)
        wanted = self._plan(self._queue)
        if not self._open:
            wanted = wanted.at_most(len(self._queue) + sum(len(actor.running) for actor in current))
        better = min(self._count(nodes).total, wanted.total)
        narrow = {id(actor) for actor in current if not actor.gpus and actor.cores < self._cores}
        if not grows and better < max(running + 1, 1.5 * running) and not (narrow and better >= running):
            self._size, self._cores = before
            return
        for actor in current:
            smaller = actor.memory > self._size or id(actor) in narrow
            actor.leaving = actor.memory < self._size if grows else smaller
        self._start_up_to(wanted)
        self._end_leaving()

    def _welcome(self) -> None:
        """Start workers on nodes that have joined since the last look.

        If a user has asked for a number of workers, Ray starts those that wait: then some only have to be replaced by workers
        with a GPU, for the GPUs of the new nodes.
        """
        nodes = self._nodes()
        if self._known.issuperset(node.id for node in nodes):
            return
        before, self._known = self._known, self._known | {node.id for node in nodes}
        current = [actor for actor in self._actors if not actor.leaving]
        fits = self._count(nodes)
        if self._asked is None:
            self._cores = self._cores_with(fits, nodes)
            tasks = len(self._queue) + sum(len(actor.running) for actor in current)
            wanted = fits if self._open else fits.at_most(max(tasks, len(current)))
            if wanted.total > self._shape.workers:
                self._shape = replace(self._shape, workers=wanted.total)
        else:
            with_gpu = sum(bool(actor.gpus) for actor in current)
            missing = self._exactly(fits, self._shape.workers).gpu - with_gpu
            waiting = [actor for actor in current if not (actor.gpus or actor.ready or _process_id(actor.handle))]
            with_gpus = {node.id for node in nodes if node.gpus} - self._slow
            started = [actor for actor in current if not actor.gpus and actor.state and actor.state.node in with_gpus]
            changed = [*waiting, *started][: max(0, missing)]
            if len(changed) < missing:  # those that are starting may be on the new nodes: look again
                self._known = before
            for actor in changed:
                actor.leaving = True
            wanted = Count(gpu=with_gpu + len(changed))
        self._start_up_to(wanted)
        self._end_leaving()

    def _is_stuck(self) -> bool:
        """Whether no worker has the memory for the first task in the queue."""
        return bool(self._queue) and not any(
            self._fits(actor, self._queue[0]) for actor in self._actors if not actor.leaving
        )

    def _add_without_gpu(self) -> None:
        """Start a worker without a GPU for a task that fits no GPU."""
        needs = self._needs(self._queue[0])
        if self._queue[0].name not in self._outgrown:
            self._on_note(
                f"a matrix needs about {needs.device_memory / 1e9:.1f} GB of a GPU, more than any worker has: it runs without one"
            )
        memory = min(size_of(needs.memory), self._node_memory)
        self._actors.append(self._start(like=_Actor(handle=None, memory=memory, cores=self._cores, gpus=0.0)))

    def _take_off_gpu(self, actor: _Actor, task: AnyTask) -> None:
        """Run a task again without a GPU; this worker gets no other that needs as much memory of its GPU."""
        self._on_note(f"the memory of a GPU did not suffice for {task.name}: it runs without one")
        self._outgrown.add(task.name)
        if actor.state is not None:
            less = math.nextafter(self._needs(task).device_memory, 0.0)
            free = actor.state.device_memory
            actor.state = replace(actor.state, device_memory=less if free is None else min(free, less))
        self._queue.appendleft(task)

    def _make_room(self) -> None:
        """End idle workers that are too small for all tasks, if those that are not have to wait for resources."""
        if not self._queue:
            return
        fitting = [actor for actor in self._actors if not actor.leaving and self._fits(actor, self._queue[0])]
        # Without one that waits there is nothing to make room for: it may have been given up.
        if not fitting or any(actor.ready or _process_id(actor.handle) for actor in fitting):
            return
        for actor in self._actors:
            if actor.ready and not actor.running and not any(self._fits(actor, task) for task in self._queue):
                actor.leaving = True
                self._ended.append(actor)
        self._end_leaving()

    def _measure(self, actor: _Actor) -> bool:
        """Have the speed of a worker measured if it is needed and not known yet; whether the worker has to wait for the result."""
        if not self._shape.mixed or actor.state is None or not any(other.gpus for other in self._actors):
            return False
        if (actor.state.node, actor.state.device) in _rates:
            self._judge(actor)
            return False
        self._calls[actor.handle.rates.remote()] = _Call(actor=actor, task=None, measures=True)
        return True

    def _judge(self, actor: _Actor) -> None:
        """Note the speed of a worker, and replace it by one without a GPU if that is faster."""
        assert actor.state is not None
        node = actor.state.node
        actor.rate = _rates.get((node, actor.state.device))
        core = _rates.get((node, "cpu"), 0.0)
        if actor.state.device == "cpu" or actor.rate is None or actor.rate >= core:
            return
        if node not in self._slow:
            self._slow.add(node)
            self._on_note(
                f"the GPU of node {node[:12]} is slower in float64 than one of its cores ({actor.rate:.1e} units of cost per "
                f"second, the core {core:.1e}): it is not used"
            )
        actor.leaving = True
        self._actors.append(self._start(like=_Actor(handle=None, memory=actor.memory, cores=actor.cores, gpus=0.0)))

    def _end_leaving(self) -> None:
        for actor in [actor for actor in self._actors if actor.leaving and not actor.running]:
            self._actors.remove(actor)
            self._calls = {reference: call for reference, call in self._calls.items() if call.actor is not actor}
            ray.kill(actor.handle)

    def _replace(self, actor: _Actor) -> None:
        ray.kill(actor.handle)  # if it still runs, it holds resources that the new one needs
        self._actors[self._actors.index(actor)] = self._start(refusals=actor.refusals, like=actor)

    def _dispatch(self) -> None:
        """Fill the windows in rounds: no worker gets a second task while another has none."""
        given: list[tuple[_Actor, AnyTask]] = []
        near_end = not self._open and len(self._queue) <= _LAST_TASKS * len(self._actors)
        rest = sum(_work(self._needs(task)) for task in self._queue) if near_end else math.inf
        for room in range(1, WINDOW + 1):
            for actor in self._actors:
                self._drop_unwanted()
                if not (self._queue and actor.ready and not actor.leaving and len(actor.running) < room):
                    continue
                if actor.running and not self._may_wait(actor, rest):
                    continue
                place = self._next(actor)
                task = self._queue[place] if place is not None else None
                if place is not None and task is not None and self._may_take(actor, task):
                    del self._queue[place]
                    actor.family = self._family(task)
                    if not actor.running:
                        actor.since = time.monotonic()
                    needs = self._needs(task)
                    rest -= _work(needs)
                    actor.running[task.name] = _Held(limit=self._time_limit(task), needs=needs)
                    given.append((actor, task))
        shares = self._shares()  # now it is known who has nothing to do
        for actor, task in given:
            threads = actor.threads = shares.get(actor, 1)
            more = (threads,) if threads > 1 and self._needs(task).spreads else ()
            self._calls[actor.handle.run.remote(task, *more)] = _Call(actor=actor, task=task)
        for actor, threads in shares.items():
            if actor.threads != threads:
                actor.threads = threads
                actor.handle.share.remote(threads)  # if it is lost, its task tells

    def _may_wait(self, actor: _Actor, rest: float) -> bool:
        """Whether a task may wait in a worker until it is free: not if the other workers would be done with the queue before.

        Args:
            actor: a worker that has a task.
            rest: expected work of the queue.
        """
        others = [other for other in self._actors if not other.leaving]
        rates = [other.rate for other in others if other.rate]
        known = actor.rate and len(rates) == len(others)
        alone, together = (actor.rate or 1.0, sum(rates)) if known else (1.0, float(len(others)))
        return len(others) == 1 or rest / together >= _held(actor) / alone

    def _shares(self) -> dict[_Actor, int]:
        """Return the BLAS threads of workers without a GPU that have a large task.

        Every one has its cores, and at the end of the run its share of those of workers on its node that have nothing left to do.
        """
        if not self._share_cores:
            return {}
        large = [
            actor
            for actor in self._actors
            if not actor.gpus and any(held.needs.spreads for held in actor.running.values())
        ]
        shares = {actor: actor.cores for actor in large}
        if self._open or self._queue:
            return shares
        idle: Counter[str] = Counter()
        helped: dict[str, list[_Actor]] = {}
        for actor in self._actors:
            if actor.ready and actor.state is not None:
                if not actor.running:
                    idle[actor.state.node] += actor.cores
                elif actor in shares:
                    helped.setdefault(actor.state.node, []).append(actor)
        for node, actors in helped.items():
            for place, actor in enumerate(sorted(actors, key=_held, reverse=True)):
                shares[actor] += idle[node] // len(actors) + (place < idle[node] % len(actors))
        return shares

    def _drop_unwanted(self) -> None:
        while self._queue and not self._still_wanted(self._queue[0]):
            self._on_dropped(self._queue.popleft())

    def _next(self, actor: _Actor) -> int | None:
        """Position in the queue of the next task of an actor: of its family, else of no other actor's family, else the first.

        Among tasks without a family it is the first that fits the actor.
        """
        if self._family(self._queue[0]) is None:
            leaves = self._leaves(actor)
            return next(
                (place for place, task in enumerate(self._queue) if self._fits(actor, task) and not leaves(task)), None
            )
        others = {other.family for other in self._actors if other is not actor}
        families = [self._family(task) for task in self._queue]
        if actor.family in families:
            return families.index(actor.family)
        return next((place for place, family in enumerate(families) if family not in others), 0)

    def _leaves(self, actor: _Actor) -> Callable[[AnyTask], bool]:
        """Return whether a worker leaves a task to faster ones: they would be done with it before, even if they took it last."""
        rate = actor.rate
        if rate is None or len(self._queue) > _LAST_TASKS * len(self._actors):
            return lambda task: False
        ready = [other for other in self._actors if other.ready and not other.leaving]
        faster = [other for other in ready if other.rate is not None and other.rate > rate]
        if not faster:
            return lambda task: False
        running = [call for call in self._calls.values() if call.task is not None]
        costs = [(call.actor, self._needs(call.task).cost) for call in running if call.task is not None]
        rest = sum(cost for _, cost in costs) + sum(self._needs(task).cost for task in self._queue)
        limit = largest_cost(rate, rest, [other.rate for other in faster if other.rate is not None])
        limit -= sum(cost for other, cost in costs if other is actor)
        memory = min(other.memory or math.inf for other in faster)
        free = min(
            math.inf if other.state is None or other.state.device_memory is None else other.state.device_memory
            for other in faster
        )

        def leaves(task: AnyTask) -> bool:
            needs = self._needs(task)
            fits = needs.memory <= memory and needs.device_memory <= free and task.name not in self._outgrown
            return fits and needs.cost > limit

        return leaves

    def _fits(self, actor: _Actor, task: AnyTask) -> bool:
        """Whether a worker has the memory for a task; what fits no node fits the worker that has a whole node."""
        needs = self._needs(task)
        if actor.memory and min(needs.memory, self._node_memory) > actor.memory:
            return False
        if actor.gpus and task.name in self._outgrown:
            return False
        free = actor.state.device_memory if actor.state is not None else None
        return free is None or needs.device_memory <= free

    def _may_take(self, actor: _Actor, task: AnyTask) -> bool:
        """A task whose worker was lost runs alone on its next worker, so that it cannot take another task with it again."""
        names = [*actor.running, task.name]
        return len(names) == 1 or not any(self._attempts[name] for name in names)

    def _collect(self, reference: Any, call: _Call[AnyTask]) -> None:
        try:
            result = ray.get(reference)
        except _LOSSES as loss:
            self._lose(call, call.actor.killed or _reason(loss))
            return
        if call.task is None:
            if call.measures:
                assert call.actor.state is not None
                for device, rate in result.items():
                    _rates.setdefault((call.actor.state.node, device), rate)
                self._judge(call.actor)
            else:
                call.actor.state = result if isinstance(result, Ready) else None
                if self._measure(call.actor):
                    return
            call.actor.ready, call.actor.refusals = True, 0
            self._end_leaving()
            self._on_workers(self._alive, len([actor for actor in self._actors if not actor.leaving]))
            return
        del call.actor.running[call.task.name]
        call.actor.since = time.monotonic()
        if call.actor.gpus and self._needs(call.task).device_memory and self._outgrew(result):
            self._take_off_gpu(call.actor, call.task)
            return
        self._queue.extendleft(self._on_done(call.task, result) or ())

    def _longest_wait(self) -> float:
        """Seconds to wait for a result: up to the next time limit, and until something has to be looked at or told."""
        now = time.monotonic()
        left = [actor.since + limit - now for actor in self._actors if (limit := _limit(actor)) is not None]
        if self._open and any(actor.ready and len(actor.running) < WINDOW for actor in self._actors):
            left.append(_IDLE_SECONDS)
        return max(_SHORTEST_WAIT, min([WAITING_SECONDS, _LOOK_SECONDS, *left]))

    def _kill_hung(self) -> None:
        """Kill workers that exceeded their time limit; their calls then end like those of any lost worker."""
        now = time.monotonic()
        for actor in self._actors:
            limit = _limit(actor)
            if limit is not None and now - actor.since > limit:
                actor.killed = f"no result within {limit:g} s"
                self._on_hung([*actor.running], limit)
                ray.kill(actor.handle)

    def _kill_not_started(self) -> None:
        """Kill workers whose process exists, but has not become ready within `START_SECONDS`; others wait for resources."""
        now = time.monotonic()
        for actor in self._actors:
            if actor.ready or actor.killed:
                continue
            if actor.process_since is None:
                actor.process_since = now if _process_id(actor.handle) else None
            elif now - actor.process_since > START_SECONDS:
                actor.killed = f"it did not start within {START_SECONDS:g} s (process {_process_id(actor.handle)})"
                ray.kill(actor.handle)

    def _lose(self, call: _Call[AnyTask], reason: str) -> None:
        actor, task = call.actor, call.task
        if task is None:
            self._refuse(actor, reason)
            return
        del actor.running[task.name]
        if actor in self._actors:  # otherwise its other task was lost first
            self._replace(actor)
            self._on_workers(self._alive, len(self._actors))
        self._attempts[task.name] += 1
        if self._attempts[task.name] >= ATTEMPTS:
            self._on_lost(task, f"lost {ATTEMPTS} workers ({reason})")
        else:
            self._queue.append(task)

    def _refuse(self, actor: _Actor, reason: str) -> None:
        """Replace a worker that did not start (an error in its constructor, a lost node), or give it up after some attempts.

        Workers that were ended to make room for one that is given up are started again.
        """
        actor.refusals += 1
        if actor.refusals < ATTEMPTS:
            self._replace(actor)
            return
        self._actors.remove(actor)
        if not actor.gpus:
            self._refused = reason
        ended, self._ended = self._ended, []
        self._actors += [self._start(like=other) for other in ended]
        if not self._actors:
            raise ScannerError(
                f"no worker can start: {reason}; correct this where the workers run, then run the command again"
            )

    def _missing_resources(self) -> str:
        there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        has = f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs"
        gpus = 0.0 if self._shape.mixed else self._shape.gpus
        size, cores, none = self._size, self._cores, "no worker yet: each needs"
        waiting = [actor for actor in self._actors if not actor.ready]
        if self._alive and waiting:
            size, cores, gpus = waiting[-1].memory, waiting[-1].cores, waiting[-1].gpus
            none = f"no worker for {self._queue[0].name} yet: it needs"
        memory = f", {size / 1e9:.2g} GB of memory" if size else ""
        return f"{none} {cores} CPU{memory} and {gpus:g} GPUs; the cluster has {has} in total, free or in use"

    @property
    def _alive(self) -> int:
        return sum(actor.ready for actor in self._actors)


def _work(needs: Needs) -> float:
    """Expected work of a task; tasks of which it is unknown count alike."""
    return needs.cost or 1.0


def _held(actor: _Actor) -> float:
    """Expected work of the tasks that a worker has."""
    return sum(_work(held.needs) for held in actor.running.values())


def _limit(actor: _Actor) -> float | None:
    """The time limit of a busy worker: the longest of its tasks, which wait for each other."""
    if not actor.running or actor.killed:
        return None
    return max((held.limit for held in actor.running.values() if held.limit is not None), default=None)


def _process_id(handle: Any) -> int:
    """Return the id of the process that an actor has been given, ready or not; 0: none yet, or Ray does not tell."""
    if ray.util.client.ray.is_connected():  # type: ignore[no-untyped-call]
        return 0  # only the cluster's side of the connection knows it
    return int(ray._private.state.actors(handle._actor_id.hex()).get("Pid", 0))


def _reason(loss: Exception) -> str:
    """Describe a loss in one line: the last line of the traceback of a worker's constructor, else the first line from Ray."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(loss)).splitlines() if line.strip()]
    if getattr(loss, "actor_init_failed", False):
        return lines[-1]
    return f"{type(loss).__name__}: {lines[0].rstrip('.')}" if lines else type(loss).__name__
