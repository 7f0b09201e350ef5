"""How many workers fit a cluster, by arithmetic, and workers that are as large as their tasks, on a Ray with little memory."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.checkpoint import list_matrices, open_checkpoint
from scanner.engine.options import PoolOptions
from scanner.engine.placement import (
    SMALLEST_BYTES,
    Count,
    Node,
    beside_gpus,
    cores_of,
    largest_cost,
    largest_node,
    size_of,
    workers_of,
)
from scanner.engine.plan import matrix_memory, spreads, task_memory
from scanner.engine.pool import Needs, Pool, PoolShape, Ready, _Actor, device_memory
from scanner.engine.rate import measured_rate
from tests.checkpoint.writing import checkpoint

from .checkpoints import weight
from .mortal import Mortal, Work

GB = 1e9


def node(cpus: float, memory: float, gpus: float = 0.0) -> Node:
    return Node(id=f"{cpus}/{memory}", cpus=cpus, gpus=gpus, memory=memory)


@given(st.floats(1.0, 1e12))
def test_a_size_is_enough_and_at_most_a_fifth_too_large(memory: float) -> None:
    size = size_of(memory)
    assert size >= memory
    assert size <= max(SMALLEST_BYTES, 1.2 * memory)


def test_workers_are_limited_by_cores_memory_and_gpus() -> None:
    large = [node(64, 128 * GB)]
    need = size_of(matrix_memory(14336, 4096))
    assert 2.4 * GB < need < 3 * GB
    assert workers_of(large, need, 0.0) == int(128 * GB // need) < 64
    assert cores_of(large, need) == 64 // workers_of(large, need, 0.0)
    assert workers_of(large, 0.0, 0.0) == workers_of(large, SMALLEST_BYTES, 0.0) == 64
    assert cores_of(large, SMALLEST_BYTES) == 1
    assert workers_of([node(8, 2 * GB), node(8, 9 * GB)], 4 * GB, 0.0) == 2, "a worker is on one node"
    assert cores_of([node(8, 2 * GB), node(8, 9 * GB)], 4 * GB) == 4
    assert workers_of([node(8, 64 * GB, gpus=2)], GB, 0.5) == 4
    assert workers_of([node(8, math.inf)], 1e15, 0.0) == 8, "Ray does not count the memory"
    assert largest_node([node(0, 100 * GB), node(4, 8 * GB)]) == 8 * GB
    assert largest_node([]) == math.inf


def test_a_task_needs_four_times_its_largest_matrix_and_the_whole_of_a_fused_weight(tmp_path: Path) -> None:
    fused = weight(3 * 64, 64, 1)
    named = {
        "transformer.h.0.attn.c_attn.weight": fused.T.contiguous(),
        "transformer.h.0.mlp.c_fc.weight": weight(64, 256, 2),
    }
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 64, "n_head": 4}
    refs = list_matrices(open_checkpoint(checkpoint(tmp_path / "model", named, config))).matrices
    query = [ref for ref in refs if ref.role in {"query", "key", "value"}]
    up = [ref for ref in refs if ref.role == "mlp_up"]
    assert len(query) == 3
    assert task_memory(query) == (4 * 8 * 3 * 64 * 64 + 600e6, 4 * 8 * 64 * 64)
    assert task_memory(up) == (4 * 8 * 64 * 256 + 600e6, 4 * 8 * 64 * 256)
    assert task_memory([*query, *up])[0] == 4 * 8 * 256 * 64 + 600e6 + 4 * (3 * 64 * 64 + 256 * 64)
    assert spreads(2048, 8192)
    assert not spreads(2047, 100_000)


def test_workers_without_a_gpu_take_what_those_with_one_leave() -> None:
    mixed = [node(8, 64 * GB, gpus=2), node(16, 20 * GB)]
    gpu, left = beside_gpus(mixed, 2 * GB, 1.0)
    assert gpu == 2
    assert [(one.cpus, one.gpus, one.memory) for one in left] == [(6, 0.0, 60 * GB), (16, 0.0, 20 * GB)]
    assert workers_of(left, 2 * GB, 0.0) == 6 + 10
    none, all_ = beside_gpus(mixed, 2 * GB, 1.0, {mixed[0].id})
    assert (none, workers_of(all_, 2 * GB, 0.0)) == (0, 8 + 10)
    assert beside_gpus([node(2, 3 * GB, gpus=8)], 2 * GB, 1.0)[0] == 1, (
        "a worker with a GPU needs a core and memory, too"
    )
    assert Count(gpu=2, cpu=16).at_most(5) == Count(gpu=2, cpu=3)
    assert Count(gpu=8, cpu=1).at_most(3) == Count(gpu=3)


@pytest.mark.parametrize(
    ("asked", "resources", "workers", "gpus", "mixed"),
    [
        ({}, {"CPU": 8.0}, 8, 1.0, True),
        ({}, {"CPU": 8.0, "GPU": 2.0}, 8, 1.0, True),
        ({"workers": 3}, {"CPU": 8.0, "GPU": 2.0}, 3, 1.0, True),
        ({"gpus_per_worker": 0.0}, {"CPU": 8.0, "GPU": 2.0}, 8, 0.0, False),
        ({"gpus_per_worker": 0.5}, {"CPU": 8.0, "GPU": 2.0}, 4, 0.5, False),
    ],
)
def test_workers_mix_unless_the_share_of_a_gpu_is_given(
    asked: dict[str, float], resources: dict[str, float], workers: int, gpus: float, mixed: bool
) -> None:
    found = PoolShape.fit(PoolOptions(**asked), resources, 100, mixes=True)  # type: ignore[arg-type]
    assert (found.workers, found.gpus, found.mixed) == (workers, gpus, mixed)


def finished(costs: list[float], rates: list[float]) -> float:
    """When workers of these rates have finished the last task, if each takes the next one as soon as it is free."""
    free, first = [0.0] * len(rates), 0
    for cost in costs:
        first = min(range(len(rates)), key=lambda worker: free[worker])
        free[first] += cost / rates[first]
    return free[first]


RATE = st.floats(0.1, 100.0)


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=12), RATE, st.lists(RATE, max_size=4))
def test_a_task_is_left_only_to_workers_that_would_be_done_with_it_before(
    costs: list[float], rate: float, others: list[float]
) -> None:
    limit = largest_cost(rate, sum(costs), others)
    faster = sorted((other for other in others if other > rate), reverse=True)
    assert (limit == math.inf) == (not faster)
    for cost in costs:
        if cost > limit * (1 + 1e-9):
            rest = [*costs]
            rest.remove(cost)
            # The task last: the worst that can happen to it.
            times = [finished([*rest, cost], faster[:count]) for count in range(1, len(faster) + 1)]
            assert min(times) <= cost / rate * (1 + 1e-9)


def test_a_gpu_takes_the_last_tasks_and_a_core_takes_its_share_before() -> None:
    gpu, core = 40.0, 1.0
    assert largest_cost(core, 1.0, [gpu]) < 1.0, "one task is left"
    assert largest_cost(core, 100.0, [gpu]) > 1.0, (
        "the core is done with one of a hundred before the GPU with the others"
    )
    assert largest_cost(core, 10.0, [gpu, 1.01]) < 1.0, "another core that is a little faster makes no difference"


def test_a_rate_is_measured_and_a_device_that_cannot_compute_has_none() -> None:
    assert 0.0 < measured_rate("cpu") < math.inf
    assert measured_rate("meta") == 0.0


# ---- on Ray


@dataclass(frozen=True, kw_only=True)
class Sized(Work):
    needs: Needs


class TellsThreads(Mortal):
    """Returns the numbers of threads that it may use, from the start of a task to its end; a GPU has little memory."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def ready(self) -> Ready:  # type: ignore[override]
        import ray

        gpu = ray.get_runtime_context().get_assigned_resources().get("GPU", 0)
        return Ready(device="cpu", node="the only one", device_memory=100.0 if gpu else None)

    def run(self, work: Work, threads: int = 1) -> str:
        self.threads = [threads]
        super().run(work)
        until = time.monotonic() + 120.0
        while work.fate == "waits for cores" and len(self.threads) == 1 and time.monotonic() < until:
            time.sleep(0.02)
        return " ".join(map(str, self.threads))

    def share(self, threads: int) -> None:
        self.threads.append(threads)


def pool_of(
    memory: float,
    cpus: int,
    done: list[tuple[str, str]],
    notes: list[str],
    *,
    wanted: int,
    asked: int | None = None,
    share_cores: bool = True,
) -> Pool[Sized]:
    return Pool(
        TellsThreads,
        PoolShape(workers=wanted, gpus=0.0),
        on_done=lambda work, outcome: done.append((work.name, outcome)),
        on_lost=lambda work, reason: pytest.fail(reason),
        on_note=notes.append,
        needs=lambda work: work.needs,
        nodes=lambda: [node(cpus, memory)],
        order=lambda work: -work.cost,
        asked=asked,
        share_cores=share_cores,
    )


@pytest.mark.usefixtures("local_ray")
def test_workers_grow_with_the_tasks_and_what_fits_no_node_runs_with_one_note(tmp_path: Path) -> None:
    """The Ray has 2 cores; the pool is told that its node has 2 GB of memory for workers."""
    log = tmp_path / "log"

    def sized(name: str, memory: float, cost: float) -> Sized:
        return Sized(name=name, log=log, seconds=0.02, cost=cost, needs=Needs(memory=memory))

    later = [sized("large", 1.5 * GB, 9.0), sized("too large", 50 * GB, 5.0), sized("too large, too", 60 * GB, 4.0)]
    done: list[tuple[str, str]] = []
    notes: list[str] = []
    pool = pool_of(2 * GB, 2, done, notes, wanted=2)
    sizes: list[list[float]] = []

    def more(patience: float) -> tuple[list[Sized], bool]:
        sizes.append(sorted(actor.memory for actor in pool._actors if not actor.leaving))
        return ([later.pop(0)], bool(later)) if len(done) > 3 and later else ([], bool(later))

    pool._more = more
    pool.run([sized(f"small {number}", 0.6 * GB, 1.0) for number in range(6)])
    assert sorted(name for name, _ in done) == sorted(
        [*(f"small {n}" for n in range(6)), "large", "too large", "too large, too"]
    )
    assert sizes[0] == [SMALLEST_BYTES] * 2
    assert [size_of(1.5 * GB)] in sizes, "one larger worker"
    assert [2 * GB] in sizes, "and one with the whole node"
    [note] = notes
    assert "0 GB of memory, and the largest node has 2.0 GB" in note


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("asked", [None, 2])
def test_workers_shrink_with_the_tasks_also_if_a_user_asks_for_more_than_fit(
    asked: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool is told that its node has 2 GB for workers: one large worker with both cores, then two small ones."""
    monkeypatch.setattr("scanner.engine.pool._LOOK_SECONDS", 0.2)
    log = tmp_path / "log"
    large = [
        Sized(name=f"large {number}", log=log, seconds=0.3, cost=9.0, needs=Needs(memory=1.5 * GB, spreads=True))
        for number in range(3)
    ]
    small = [
        Sized(name=f"small {number}", log=log, seconds=0.3, cost=1.0, needs=Needs(memory=0.6 * GB, spreads=True))
        for number in range(60)
    ]
    done: list[tuple[str, str]] = []
    pool = pool_of(2 * GB, 2, done, [], wanted=2, asked=asked)
    sizes: list[list[tuple[float, int]]] = []

    def more(patience: float) -> tuple[list[Sized], bool]:
        sizes.append(sorted((actor.memory, actor.cores) for actor in pool._actors if actor.ready and not actor.leaving))
        return [], False

    pool._more = more
    pool.run([*large, *small])
    threads = dict(done)
    assert len(done) == 63
    assert [threads[work.name] for work in large] == ["2"] * 3
    assert [(size_of(1.5 * GB), 2)] in sizes
    assert [(SMALLEST_BYTES, 1)] * 2 in sizes
    assert threads["small 57"] == "1"


@pytest.mark.parametrize(
    ("asked", "nodes", "before", "after"),
    [
        (128, [node(64, 250 * GB)] * 2, (58, 2), (128, 1)),
        (8, [node(16, 32 * GB)], (3, 2), (8, 1)),
        (None, [node(16, 32 * GB)], (3, 5), (10, 1)),
        (64, [node(16, 66 * GB)] * 8, (56, 1), (56, 1)),
    ],
)
def test_memory_decides_how_many_workers_run_and_a_user_how_many_cores_they_take(
    asked: int | None,
    nodes: list[Node],
    before: tuple[int, int],
    after: tuple[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Matrices of 70 billion parameters; the nodes join after the start, and workers run as far as they fit."""
    monkeypatch.setattr("scanner.engine.pool._process_id", lambda handle: 0)
    tasks = [
        Sized(name=f"{memory} {number}", log=tmp_path, needs=Needs(memory=memory, cost=memory, spreads=True))
        for memory in (8.12 * GB, 2.75 * GB)
        for number in range(240)
    ]
    there = [node(0, 30 * GB)]
    pool: Pool[Sized] = Pool(
        Mortal,
        PoolShape(workers=asked or 16, gpus=0.0),
        on_done=lambda work, outcome: None,
        on_lost=lambda work, reason: None,
        needs=lambda work: work.needs,
        nodes=lambda: there,
        asked=asked,
        share_cores=True,
    )

    def start(*, gpus: float = 0.0, refusals: int = 0, like: _Actor | None = None) -> _Actor:
        return _Actor(handle=None, memory=pool._size, cores=pool._cores, gpus=gpus)

    def run_as_far_as_they_fit() -> tuple[int, int]:
        pool._actors = [actor for actor in pool._actors if not actor.leaving]
        free = {number: [one.cpus, one.memory] for number, one in enumerate(there)}
        for actor in pool._actors:
            place = next((has for has in free.values() if has[0] >= actor.cores and has[1] >= actor.memory), None)
            actor.ready = place is not None
            if place is not None:
                place[:] = place[0] - actor.cores, place[1] - actor.memory
        return sum(actor.ready for actor in pool._actors), pool._actors[0].cores

    pool._start = start  # type: ignore[method-assign]
    pool._end_leaving = lambda: None  # type: ignore[method-assign]
    pool._open = False
    pool._queue.extend(tasks)
    pool._start_up_to(pool._plan(pool._queue))
    there[:] = [replace(one, id=str(number)) for number, one in enumerate(nodes)]
    pool._resize()
    assert run_as_far_as_they_fit() == before
    while pool._queue[0].needs.memory > 3 * GB:
        pool._queue.popleft()
    pool._resize()
    assert run_as_far_as_they_fit() == after
    pool._resize()
    assert run_as_far_as_they_fit() == after, "and that is all"


@pytest.mark.usefixtures("local_ray")
def test_idle_cores_help_with_the_last_large_tasks_and_only_with_these(tmp_path: Path) -> None:
    def sized(name: str, *, spreads: bool, seconds: float = 0.3) -> Sized:
        return Sized(name=name, log=tmp_path / "log", seconds=seconds, needs=Needs(memory=GB, spreads=spreads))

    for share, tasks, expected in (
        (True, [sized("a", spreads=True)], {"a": "2"}),
        (False, [sized("a", spreads=True)], {"a": "1"}),
        (True, [sized("a", spreads=False)], {"a": "1"}),
    ):
        done: list[tuple[str, str]] = []
        # One worker of two cores: there is no memory for another.
        pool_of(1.5 * GB, 2, done, [], wanted=2, share_cores=share).run(tasks)
        assert dict(done) == expected


@pytest.mark.usefixtures("local_ray")
def test_a_large_task_that_runs_at_the_end_gets_the_cores_of_workers_that_become_idle(tmp_path: Path) -> None:
    def sized(name: str, cost: float, fate: str = "lives") -> Sized:
        needs = Needs(memory=0.6 * GB, spreads=True, cost=cost)
        return Sized(name=name, log=tmp_path / "log", fate=fate, cost=cost, needs=needs)

    done: list[tuple[str, str]] = []
    pool = pool_of(2 * GB, 2, done, [], wanted=2)
    pool.run([sized("long", 20.0, "waits for cores"), sized("b", 4.0), sized("c", 3.0), sized("d", 2.0)])
    assert done == [("b", "1"), ("c", "1"), ("d", "1"), ("long", "1 2")], "and no task waits behind the long one"


def shares(workers: int, tasks: int, *, nodes: int = 1, large: int | None = None) -> list[list[int]]:
    """The threads of every task, from its start to its end, if workers of one core end in the order in which they began."""
    told: dict[int, list[int]] = {}
    calls: list[tuple[_Actor, Sized]] = []
    pool = pool_of(1e6 * GB, workers, [], [], wanted=workers)

    class Handle:
        def __init__(self, number: int) -> None:
            self.run, self.share = SimpleNamespace(remote=self.runs), SimpleNamespace(remote=self.shares)
            self.number, self.task = number, -1

        def runs(self, work: Sized, threads: int = 1) -> object:
            self.task = int(work.name)
            told[self.task] = [threads]
            calls.append((pool._actors[self.number], work))
            return object()

        def shares(self, threads: int) -> None:
            told[self.task].append(threads)

    pool._actors = [
        _Actor(handle=Handle(i), memory=1e3 * GB, ready=True, state=Ready(device="cpu", node=str(i % nodes)))
        for i in range(workers)
    ]
    pool._open = False
    for number in range(tasks):
        needs = Needs(memory=GB, spreads=large is None or number < large, cost=1.0)
        pool._queue.append(Sized(name=str(number), log=Path(), needs=needs))
    pool._dispatch()
    while calls:
        using = sum({id(one): told[int(task.name)][-1] for one, task in calls}.values())
        assert using <= workers, "no core is used twice"
        if nodes == 1 and large is None:
            assert using == workers, "every core is used to the end"
        actor, work = calls.pop(0)
        del actor.running[work.name]
        pool._dispatch()
    return [told[number] for number in range(tasks)]


@pytest.mark.parametrize(("workers", "tasks"), [(8, 4), (8, 9), (16, 226), (8, 1), (3, 2)])
def test_all_cores_are_used_as_long_as_a_large_task_runs(workers: int, tasks: int) -> None:
    found = shares(workers, tasks)
    assert found[-1][-1] == workers, "the last task has them all"
    assert [threads[0] for threads in found] == [
        1 if tasks > workers else workers // tasks + (i < workers % tasks) for i in range(tasks)
    ]


def test_cores_help_on_their_own_node_and_with_large_tasks_only() -> None:
    assert max(max(threads) for threads in shares(8, 3, nodes=2)) == 4
    assert shares(4, 2, large=1) == [[3], [1]]


class SmallDevice(TellsThreads):
    """The first one says that it has a device with 100 bytes; those that follow have none."""

    marker = Path()

    def __init__(self) -> None:
        super().__init__()
        self.free = None if self.marker.exists() else 100.0
        self.marker.touch()

    def ready(self) -> Ready:  # type: ignore[override]
        return Ready(device="cpu", node="the only one", device_memory=self.free)


@pytest.mark.usefixtures("local_ray")
def test_an_idle_worker_makes_room_for_one_that_fits_and_the_user_is_told_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker holds both cores, and the matrix does not fit its device."""
    monkeypatch.setattr("scanner.engine.pool._LOOK_SECONDS", 3.0)
    monkeypatch.setattr("scanner.engine.pool.WAITING_SECONDS", 0.5)
    done: list[tuple[str, str]] = []
    notes: list[str] = []
    waiting: list[str] = []
    pool = pool_of(1.5 * GB, 2, done, notes, wanted=2)
    pool._class = type("SmallDevice", (SmallDevice,), {"marker": tmp_path / "marker"})
    pool._on_waiting = waiting.append
    needs = Needs(memory=GB, device_memory=1000.0, spreads=True)
    pool.run([Sized(name="large", log=tmp_path / "log", needs=needs)])
    assert [name for name, _ in done] == ["large"]
    assert len(notes) == 1
    assert any("no worker for large yet: it needs 2 CPU" in reason for reason in waiting)


class WithoutGpuFails(TellsThreads):
    """The first one says that it has a device with 100 bytes; the three that follow cannot start; then it is as at first."""

    marker = Path()

    def __init__(self) -> None:
        super().__init__()
        started = len(self.marker.read_text()) if self.marker.exists() else 0
        self.marker.write_text("x" * (started + 1))
        if 1 <= started <= 3:
            raise RuntimeError("no core for it")

    def ready(self) -> Ready:  # type: ignore[override]
        return Ready(device="cpu", node="the only one", device_memory=100.0)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("memory", [1.3 * GB, 0.9 * GB], ids=["beside the first", "in place of the first"])
def test_a_task_for_which_no_worker_can_start_is_told_and_the_others_are_done(
    memory: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less memory, the first worker holds both cores, so it has to make room, and is started again."""
    monkeypatch.setattr("scanner.engine.pool._LOOK_SECONDS", 3.0)
    done: list[tuple[str, str]] = []
    refused: list[tuple[str, str]] = []
    pool = pool_of(memory, 2, done, [], wanted=1)
    pool._class = type("WithoutGpuFails", (WithoutGpuFails,), {"marker": tmp_path / "marker"})
    pool._on_refused = lambda work, reason: refused.append((work.name, reason))
    log = tmp_path / "log"
    later = [Sized(name="later", log=log, needs=Needs(memory=0.6 * GB))]

    def more(patience: float) -> tuple[list[Sized], bool]:
        found = [later.pop()] if refused and later else []
        return found, bool(later)

    pool._more = more
    large = [
        Sized(name=f"large {number}", log=log, needs=Needs(memory=0.6 * GB, device_memory=1000.0)) for number in "ab"
    ]
    pool.run([*large, Sized(name="small", log=log, needs=Needs(memory=0.6 * GB))])
    assert [name for name, _ in done] == ["small", "later"]
    reason = "no worker without a GPU can start: RuntimeError: no core for it"
    assert refused == [("large a", reason), ("large b", reason)]
    started = len((tmp_path / "marker").read_text())
    assert started == 5 if memory < GB else started >= 4


def test_no_worker_makes_room_if_none_waits_for_it(tmp_path: Path) -> None:
    """The one that would have fitted has been given up: this one has to do what comes later."""
    pool = pool_of(1.3 * GB, 2, [], [], wanted=1)
    state = Ready(device="cpu", node="the only one", device_memory=100.0)
    idle = _Actor(handle=None, memory=0.6 * GB, ready=True, state=state)
    pool._actors = [idle]
    pool._queue.append(Sized(name="large", log=tmp_path / "log", needs=Needs(memory=0.6 * GB, device_memory=1000.0)))
    pool._make_room()
    assert (pool._actors, pool._ended, idle.leaving) == ([idle], [], False)


@pytest.mark.parametrize(("share", "free"), [(0.5, 40.0), (1.0, 80.0), (2.0, 80.0)])
def test_a_worker_counts_on_its_share_of_the_memory_of_a_gpu(
    share: float, free: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(get_assigned_resources=lambda: {"CPU": 1.0, "GPU": share})
    monkeypatch.setattr("scanner.engine.pool.ray.get_runtime_context", lambda: context)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (80, 96))
    assert device_memory("cuda") == free
    assert device_memory("cpu") is None
