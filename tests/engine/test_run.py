"""The life cycle of all kinds of work: its state as seen by other processes, its counters, and how failures end it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scanner import PoolOptions, open_store
from scanner.engine.run import _Status, run
from scanner.engine.scan import scan
from scanner.engine.task import STAGES, Context, Failure, Task, TaskError, fatal_errors
from scanner.engine.work import Observer, Stored, Work
from scanner.engine.worker import Worker, WorkerContext
from scanner.errors import ScannerError
from scanner.store import Heartbeat

from .checkpoints import slow
from .observer import Recorder

pytestmark = pytest.mark.usefixtures("local_ray")
ONE = PoolOptions(workers=1)


@dataclass(frozen=True, kw_only=True)
class Number(Task):
    """Doubles a number; negative numbers fail in various ways."""

    number: int
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"number {self.number}"

    @property
    def cost(self) -> float:
        return 1.0

    @property
    def family(self) -> str | None:
        return None if self.number < 100 else "large"

    def run(self, context: Context) -> Any:
        with context.stage("read"):
            time.sleep(self.seconds)
            context.count_bytes(10)
        if self.number == -1:
            raise ValueError("negative\nand more")
        if self.number == -2:
            raise TaskError("very negative", stage="read")
        if self.number == -3:
            with fatal_errors():
                raise KeyError("nothing works")
        if self.number == -4:
            os._exit(1)
        with context.computing():
            kept = context.resident("slot", self.number // 100, lambda: uuid.uuid4().hex)
            return 2 * self.number, kept, os.getpid(), time.monotonic_ns()


class Numbers(Work):
    kind = "numbers"
    unit = "numbers"

    def __init__(self, store: Path, numbers: list[int], following: int | None = None, seconds: float = 0.0) -> None:
        self.store = open_store(str(store), create=True)
        self.numbers, self.following, self.seconds = numbers, following, seconds
        self.values: dict[int, Any] = {}
        self.failures: dict[int, Failure] = {}
        self.finished = self.began = 0

    @property
    def names(self) -> list[str]:
        return ["some", "numbers"]

    def tasks(self) -> list[Number]:
        return [Number(number=number, seconds=self.seconds) for number in self.numbers]

    def started(self, environment: dict[str, Any]) -> None:
        assert environment["workers"] >= 1
        self.began += 1

    def done(self, task: Task, value: Any) -> Stored:
        assert isinstance(task, Number)
        self.values[task.number] = value
        more, self.following = self.following, None
        return Stored(following=() if more is None else (Number(number=more),))

    def failed(self, task: Task, failure: Failure) -> Stored:
        assert isinstance(task, Number)
        self.failures[task.number] = failure
        return Stored(failed=(task.name,))

    def finish(self) -> None:
        self.finished += 1


def test_results_failures_and_losses_are_told_apart(tmp_path: Path) -> None:
    told = Recorder()
    work = Numbers(tmp_path, [1, -1, 2, -2, -4, 3], following=4)
    run([work], ONE, told)
    assert {number: value[0] for number, value in work.values.items()} == {1: 2, 2: 4, 3: 6, 4: 8}
    assert work.failures[-1] == Failure(message="ValueError: negative", error="ValueError")
    assert work.failures[-2] == Failure(message="very negative", error="TaskError", stage="read")
    assert work.failures[-4].error == "WorkerLost"
    assert "lost 3 workers" in work.failures[-4].message
    assert sorted(told.failed) == ["number -1", "number -2", "number -4"]
    assert len(told.tasks) == 7
    assert (work.began, work.finished) == (1, 1)


def test_a_failure_that_all_tasks_share_ends_the_run_and_nothing_is_finished(tmp_path: Path) -> None:
    work = Numbers(tmp_path, [-3, *range(50)])
    with pytest.raises(ScannerError, match=r"^KeyError: 'nothing works'$"):
        run([work], ONE, Observer())
    assert work.finished == 0
    assert work.store.running() == [], "no heartbeat stays behind"


def test_an_exception_does_not_wait_for_a_store_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanner.engine.run._REMOTE_BEAT_SECONDS", 0.1)
    store, gone = open_store(f"memory://{uuid.uuid4().hex}", create=True), threading.Event()

    work = Numbers(tmp_path, [1])
    work.store = store

    def refused(*_: Any, **__: Any) -> None:
        gone.set()
        raise ConnectionError("the server is gone")

    def interrupted() -> None:
        with _Status(work, 1, 1.0).visible():
            while not store.running():
                time.sleep(0.01)
            for name in ("pipe_file", "rm_file", "makedirs"):
                monkeypatch.setattr(store.files.fs, name, refused)
            assert gone.wait(60), "a heartbeat is being written"
            started.append(time.monotonic())
            raise KeyboardInterrupt

    started: list[float] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - started[0] < 10
    for thread in [one for one in threading.enumerate() if one.name == "rmtscan-heartbeat"]:
        thread.join(60)
        assert not thread.is_alive(), "the thread does not ask for minutes, either"


def test_work_without_tasks_is_finished_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanner.engine.run.ray_session", lambda options: pytest.fail("Ray was asked for"))
    work = Numbers(tmp_path, [])
    run([work, work], ONE, Observer())
    assert (work.began, work.finished) == (0, 2)


def test_a_worker_keeps_one_object_by_slot_and_makes_it_again_for_another_key(tmp_path: Path) -> None:
    work = Numbers(tmp_path, [1, 2, 101, 102, 3])
    run([work], ONE, Observer())
    # A worker reads ahead, so any order is possible.
    in_order = sorted(work.values.items(), key=lambda item: item[1][3])
    keys = [number // 100 for number, _ in in_order]
    kept = [value[1] for _, value in in_order]
    assert set(keys) == {0, 1}
    for position in range(1, len(keys)):
        assert (kept[position] == kept[position - 1]) == (keys[position] == keys[position - 1]), (keys, kept)


def test_a_time_limit_of_the_user_replaces_a_worker_and_names_the_task(tmp_path: Path) -> None:
    class Hung(Recorder):
        def hung(self, tasks: list[str], seconds: float) -> None:
            hung.append((tuple(tasks), seconds))

    hung: list[tuple[tuple[str, ...], float]] = []
    work = Numbers(tmp_path, [1], seconds=3600.0)
    run([work], PoolOptions(workers=1, task_timeout=1.0), Hung())
    assert hung == [(("number 1",), 1.0)] * 3
    assert work.failures[1].message == "lost 3 workers (no result within 1 s)"


def test_running_work_is_seen_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rmtscan status` in another process while a scan runs."""
    monkeypatch.setattr("scanner.engine.run._BEAT_SECONDS", 0.02)
    model, store = slow(tmp_path / "model", matrices=6, size=64), tmp_path / "store"
    seen: list[Any] = []
    beats: list[Heartbeat] = []

    def look(done: int) -> None:
        if done == 3:
            time.sleep(0.5)
            beats.extend(open_store(str(store)).running())
            command = [
                sys.executable,
                "-m",
                "scanner.cli.main",
                "status",
                "--running",
                "-f",
                "json",
                "--store",
                str(store),
            ]
            seen.append(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)

    scan(model, store=store, pool=ONE, ensembles=(), observer=Recorder(look))
    [row] = json.loads(seen[0])
    assert (row["running"], row["models"], row["done"], row["total"]) == ("scan", f"{tmp_path.name}/model", 3, 6)
    assert (row["workers"], row["pid"], row["state"], row["failed"]) == (1, os.getpid(), "running", 0)
    [beat] = beats
    assert {*beat.stages} == {*STAGES}
    assert all(seconds >= 0.0 for seconds in beat.stages.values())
    assert beat.bytes_read == 3 * 4 * 64 * 64
    assert 0 < beat.cost_done < beat.cost
    assert open_store(str(store)).running() == [], "a run that has ended is not running"
    assert not list((store / "running").iterdir())
    rows = open_store(str(store)).sql(
        "SELECT bytes_read, seconds, read_seconds, decompose_seconds, test_seconds FROM matrices"
    )
    for one in rows.to_pylist():
        assert one["bytes_read"] == 4 * 64 * 64
        parts = one["read_seconds"] + one["decompose_seconds"] + one["test_seconds"]
        assert one["seconds"] == pytest.approx(parts)


def test_a_stage_does_not_count_the_stages_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr("scanner.engine.worker.granted_device", lambda: "cpu")
    monkeypatch.setattr("scanner.engine.worker.time.perf_counter", lambda: float(next(seconds)))
    context = WorkerContext(Worker())
    with context.computing():  # starts at 0, is told 1, ends at 6
        with context.stage("read"):  # from 2 to 3
            pass
        with context.stage("test"):  # from 4 to 5
            pass
    assert context.stages == {"read": 1.0, "test": 1.0, "compute": 4.0}


def test_a_computation_uses_cores_as_soon_as_they_are_given_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The BLAS of numpy and scipy itself tells how many threads it uses."""
    monkeypatch.setattr("scanner.engine.worker.granted_device", lambda: "cpu")
    worker = Worker()
    before = blas_threads(worker)
    begun, shared = threading.Event(), threading.Event()
    seen: list[set[int]] = []

    def compute(context: WorkerContext) -> None:
        with context.computing():
            seen.append(blas_threads(worker))
            begun.set()
            assert shared.wait(30.0)
            seen.append(blas_threads(worker))

    for large in (True, False):
        begun.clear()
        shared.clear()
        task = SimpleNamespace(spreads=large, run=compute)
        thread = threading.Thread(target=worker.run, args=(task,))
        thread.start()
        assert begun.wait(30.0)
        worker.share(2)
        shared.set()
        thread.join()
    assert seen == [{1}, {2}, {1}, {1}], "only a large task gets them"
    assert blas_threads(worker) == before


def blas_threads(worker: Worker) -> set[int]:
    found = {library["num_threads"] for library in worker.thread_pools.info() if library["internal_api"] == "openblas"}
    assert found
    return found
