"""The pool with workers that are made to die, without any matrices."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scanner.engine.options import PoolOptions
from scanner.engine.pool import ATTEMPTS, Pool, PoolShape, run_tasks
from scanner.errors import ScannerError

from .mortal import DiesInTheConstructor, HangsWhileItStarts, Mortal, Refuses, RefusesOnce, TellsWhere, Work

pytestmark = pytest.mark.usefixtures("local_ray")


@dataclass(kw_only=True)
class Told:
    """The calls of the pool to its driver."""

    done: list[tuple[str, str]] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)
    workers: list[tuple[int, int]] = field(default_factory=list)

    def pool(self, worker: type, count: int, family: Callable[[Work], str | None] = lambda work: None) -> Pool[Work]:
        return Pool(
            worker,
            PoolShape(workers=count, gpus=0.0),
            on_done=lambda work, outcome: self.done.append((work.name, outcome)),
            on_lost=lambda work, reason: self.lost.append((work.name, reason)),
            on_workers=lambda alive, wanted: self.workers.append((alive, wanted)),
            family=family,
        )


@pytest.mark.parametrize("count", [1, 2])
def test_poisonous_work_is_lost_after_three_workers_and_the_rest_is_done_once(tmp_path: Path, count: int) -> None:
    log = tmp_path / "log"
    work = [Work(name=f"innocent {i}", log=log, seconds=0.02) for i in range(24)]
    # Far apart: if one worker had both, the first would end it before the other starts, which counts as an attempt of both.
    work[5] = Work(name="exits", log=log, fate="exits", seconds=0.01)
    work[15] = Work(name="killed", log=log, fate="is killed", seconds=0.01)
    told = Told()
    told.pool(Mortal, count).run(work)

    innocent = [one.name for one in work if one.fate == "lives"]
    assert sorted(told.done) == sorted((name, name.upper()) for name in innocent)
    assert sorted(name for name, _ in told.lost) == ["exits", "killed"]
    assert all("lost 3 workers" in reason and reason.isprintable() for _, reason in told.lost)
    tried = Counter(log.read_text().splitlines())
    assert tried["exits"] == tried["killed"] == ATTEMPTS == 3
    assert max(tried[name] for name in innocent) <= 2, "a task in the same worker may be lost once; then it runs alone"
    assert sum(tried[name] for name in innocent) <= len(innocent) + 2 * count
    assert {wanted for _, wanted in told.workers} == {count}


def test_a_family_stays_with_one_worker_until_nothing_else_is_left(tmp_path: Path) -> None:
    work = [Work(name=f"{name}{i}", log=tmp_path / "log", seconds=0.05) for name in "abcd" for i in range(6)]
    told = Told()
    told.pool(TellsWhere, 2, family=lambda one: one.name[0]).run(work)
    where: dict[str, set[str]] = {}
    for name, process in told.done:
        where.setdefault(name[0], set()).add(process)
    assert len(told.done) == 24
    assert len(set().union(*where.values())) == 2, "both workers had something to do"
    assert sorted(len(processes) for processes in where.values())[:3] == [1, 1, 1], where


def test_work_beside_poison_in_the_same_worker_is_not_recorded_as_lost(tmp_path: Path) -> None:
    log = tmp_path / "log"
    slow = [Work(name=f"slow {i}", log=log, seconds=0.3) for i in range(2)]
    told = Told()
    told.pool(Mortal, 1).run([slow[0], Work(name="poison", log=log, fate="exits"), slow[1]])
    assert sorted(name for name, _ in told.done) == ["slow 0", "slow 1"]
    assert [name for name, _ in told.lost] == ["poison"]


@pytest.mark.parametrize("fate", ["is stopped", "sleeps forever"])
def test_a_worker_that_hangs_is_replaced_and_its_task_tried_again_then_recorded(tmp_path: Path, fate: str) -> None:
    log = tmp_path / "log"
    work = [Work(name=f"innocent {i}", log=log, seconds=0.02) for i in range(8)]
    work[3] = Work(name="hangs", log=log, fate=fate)
    told, hung = Told(), []
    pool: Pool[Work] = Pool(
        Mortal,
        PoolShape(workers=2, gpus=0.0),
        on_done=lambda work, outcome: told.done.append((work.name, outcome)),
        on_lost=lambda work, reason: told.lost.append((work.name, reason)),
        on_hung=lambda names, seconds: hung.append((names, seconds)),
        time_limit=lambda work: 5.0,
    )
    pool.run(work)
    assert sorted(name for name, _ in told.done) == sorted(one.name for one in work if one.fate == "lives")
    assert told.lost == [("hangs", f"lost {ATTEMPTS} workers (no result within 5 s)")]
    assert len(hung) == ATTEMPTS
    assert all("hangs" in names and seconds == 5.0 for names, seconds in hung)
    assert log.read_text().splitlines().count("hangs") == ATTEMPTS


def test_a_worker_that_hangs_while_it_starts_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("scanner.engine.pool.START_SECONDS", 5.0)
    monkeypatch.setattr("scanner.engine.pool._LOOK_SECONDS", 0.5)
    started = type("HangsOnce", (HangsWhileItStarts,), {"marker": tmp_path / "marker"})
    told = Told()
    told.pool(started, 1).run([Work(name="a", log=tmp_path / "log")])
    assert (told.done, told.lost) == ([("a", "A")], [])


def test_workers_that_always_hang_while_they_start_are_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("scanner.engine.pool.START_SECONDS", 0.3)
    monkeypatch.setattr("scanner.engine.pool._LOOK_SECONDS", 0.1)
    started = type("Hangs", (HangsWhileItStarts,), {"marker": tmp_path / "missing" / "marker"})
    monkeypatch.setattr(started, "__init__", lambda self: time.sleep(10_000))
    with pytest.raises(ScannerError, match=r"no worker can start: it did not start within 0\.3 s \(process \d+\)"):
        Told().pool(started, 1).run([Work(name="a", log=tmp_path / "log")])


def test_tasks_without_an_estimate_have_a_time_limit() -> None:
    from scanner.engine.task import Task
    from scanner.experiments.lazy_learning import Point

    assert Task.time_limit.fget(object()) == 86_400.0
    assert Point.time_limit is Task.time_limit


def test_a_slow_task_within_its_limit_is_not_disturbed(tmp_path: Path) -> None:
    """The limit counts from the last result of a worker, because two tasks in one worker wait for each other."""
    work = [Work(name=f"{i}", log=tmp_path / "log", seconds=0.8) for i in range(4)]
    told = Told()
    pool: Pool[Work] = Pool(
        Mortal,
        PoolShape(workers=1, gpus=0.0),
        on_done=lambda work, outcome: told.done.append((work.name, outcome)),
        on_lost=lambda work, reason: pytest.fail(reason),
        on_hung=lambda names, seconds: pytest.fail(str(names)),
        time_limit=lambda work: 5.0,
    )
    pool.run(work)
    assert len(told.done) == 4


def test_nothing_but_poison_ends_too(tmp_path: Path) -> None:
    told = Told()
    told.pool(Mortal, 1).run([Work(name="a", log=tmp_path / "log", fate="exits")])
    assert told.done == []
    assert [name for name, _ in told.lost] == ["a"]
    assert (tmp_path / "log").read_text().split() == ["a"] * ATTEMPTS, "every attempt has a worker that lives"


@pytest.mark.parametrize(
    ("worker", "reason"), [(Refuses, "RuntimeError: no such device"), (DiesInTheConstructor, "ActorDiedError")]
)
def test_workers_that_cannot_start_end_the_run_with_the_reason(tmp_path: Path, worker: type, reason: str) -> None:
    told = Told()
    with pytest.raises(ScannerError, match="no worker can start") as caught:
        told.pool(worker, 1).run([Work(name="a", log=tmp_path / "log")])
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()
    assert (told.done, told.lost) == ([], [])


def test_a_worker_that_fails_to_start_once_is_started_again(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    worker = type("RefusesOnceHere", (RefusesOnce,), {"marker": marker})
    told = Told()
    told.pool(worker, 1).run([Work(name="a", log=tmp_path / "log")])
    assert marker.exists()
    assert told.done == [("a", "A")]


def test_no_work_needs_no_worker() -> None:
    told = Told()
    told.pool(Refuses, 1).run([])
    assert told.done == []


def test_an_error_of_the_driver_leaves_no_worker_behind(tmp_path: Path) -> None:
    def full(work: Work, outcome: str) -> None:
        raise ScannerError("the store is full")

    log = tmp_path / "log"
    pool: Pool[Work] = Pool(
        Mortal, PoolShape(workers=1, gpus=0.0), on_done=full, on_lost=lambda work, reason: pytest.fail(reason)
    )
    with pytest.raises(ScannerError, match="the store is full"):
        pool.run([Work(name=f"{i}", log=log, seconds=0.2) for i in range(50)])
    seen = log.read_text()
    time.sleep(1.0)
    assert log.read_text() == seen, "a worker still runs after the run has ended"
    assert len(seen.split()) <= 4


def test_a_pool_that_cannot_have_its_workers_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(reason: str) -> None:
        raise ScannerError(reason)

    monkeypatch.setattr("scanner.engine.pool.WAITING_SECONDS", 0.3)
    told = Told()
    pool: Pool[Work] = Pool(
        Mortal,
        PoolShape(workers=1, gpus=1.0),
        on_done=lambda work, outcome: told.done.append((work.name, outcome)),
        on_lost=lambda work, reason: told.lost.append((work.name, reason)),
        on_waiting=stop,
    )
    with pytest.raises(ScannerError, match="each needs 1 CPU and 1 GPUs; the cluster has 2 CPUs and 0 GPUs"):
        pool.run([Work(name="a", log=tmp_path / "log")])
    assert (told.done, told.lost) == ([], [])


def test_a_gpu_that_this_machine_has_not_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ScannerError, match="this machine has 0 GPUs: omit it, or give the address of a cluster"):
        run_tasks(
            Mortal,
            [Work(name="a", log=tmp_path / "log")],
            PoolOptions(gpus_per_worker=0.5),
            on_start=lambda environment: None,
            on_done=lambda work, outcome: pytest.fail(work.name),
            on_lost=lambda work, reason: pytest.fail(reason),
        )


@pytest.mark.parametrize(
    ("asked", "resources", "tasks", "workers", "gpus"),
    [
        ({}, {"CPU": 8.0}, 100, 8, 0.0),
        ({}, {"CPU": 8.0}, 3, 3, 0.0),
        ({}, {"CPU": 1.0}, 100, 1, 0.0),
        ({}, {}, 100, 1, 0.0),
        ({}, {"CPU": 8.0, "GPU": 2.0}, 100, 2, 1.0),
        ({"gpus_per_worker": 0.5}, {"CPU": 8.0, "GPU": 2.0}, 100, 4, 0.5),
        ({"gpus_per_worker": 0.4}, {"CPU": 8.0, "GPU": 5.0}, 100, 10, 0.4),
        ({"gpus_per_worker": 0.2}, {"CPU": 8.0, "GPU": 3.0}, 100, 15, 0.2),
        ({"gpus_per_worker": 0.1}, {"CPU": 8.0, "GPU": 1.0}, 100, 10, 0.1),
        ({"gpus_per_worker": 2.0}, {"CPU": 8.0, "GPU": 5.0}, 100, 2, 2.0),
        ({"gpus_per_worker": 0.0}, {"CPU": 8.0, "GPU": 2.0}, 100, 8, 0.0),
        ({"gpus_per_worker": 1.0}, {"CPU": 8.0}, 100, 1, 1.0),
        ({"workers": 3}, {"CPU": 8.0}, 100, 3, 0.0),
        ({"workers": 30}, {"CPU": 8.0}, 100, 30, 0.0),
        ({"workers": 30}, {"CPU": 8.0}, 5, 5, 0.0),
        ({"workers": 3, "gpus_per_worker": 1.0}, {"CPU": 8.0}, 100, 3, 1.0),
    ],
)
def test_workers_fit_the_cluster(
    asked: dict[str, float], resources: dict[str, float], tasks: int, workers: int, gpus: float
) -> None:
    found = PoolShape.fit(PoolOptions(**asked), resources, tasks)  # type: ignore[arg-type]
    assert (found.workers, found.gpus) == (workers, gpus)


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"workers": -1},
        {"gpus_per_worker": -0.5},
        {"gpus_per_worker": 1.5},
        {"gpus_per_worker": 1e-5},
        {"task_timeout": 0.0},
        {"task_timeout": -1.0},
        {"task_timeout": float("nan")},
    ],
)
def test_impossible_pools_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ScannerError, match=r"workers|gpus_per_worker|task_timeout"):
        PoolOptions(**wrong)  # type: ignore[arg-type]
