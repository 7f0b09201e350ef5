"""Work in this process: the same tasks and results as in a pool, without Ray."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from scanner import ScannerError, open_store
from scanner.engine.inline import environment, run_inline
from scanner.engine.task import Context, Failure, Task, TaskError
from scanner.engine.work import Stored, Work

from .observer import Recorder


@dataclass(frozen=True, kw_only=True)
class Step(Task):
    """A task that notes where it ran."""

    label: str
    size: float = 1.0
    first: bool = False
    fails: type[Exception] | None = None
    fatal: bool = False

    @property
    def name(self) -> str:
        return self.label

    @property
    def cost(self) -> float:
        return self.size

    @property
    def precedes(self) -> bool:
        return self.first

    def run(self, context: Context) -> Any:
        if self.fails is torch.OutOfMemoryError and context.device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.fails is not None and self.fails is not torch.OutOfMemoryError:
            raise TaskError("bad input", fatal=self.fatal) if self.fatal else self.fails("bad input")
        with context.computing(), context.stage("decompose"):
            np.ones((64, 64)) @ np.ones((64, 64))
            threads = {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}
        return self.label, context.device, threads


class Steps(Work):
    """Work that keeps what its tasks return."""

    kind = "steps"

    def __init__(self, folder: Path, tasks: list[Step], following: dict[str, list[Step]] | None = None) -> None:
        self.store = open_store(str(folder), create=True)
        self.given, self.after = tasks, following or {}
        self.values: list[Any] = []
        self.failures: dict[str, Failure] = {}
        self.ended: list[str] = []
        self.environment: dict[str, Any] = {}
        self.unwanted: set[str] = set()

    @property
    def names(self) -> list[str]:
        return ["steps"]

    def tasks(self) -> list[Step]:
        return self.given

    def wanted(self, task: Task) -> bool:
        return task.name not in self.unwanted

    def started(self, environment: dict[str, Any]) -> None:
        self.environment = environment

    def done(self, task: Task, value: Any) -> Stored:
        self.values.append(value)
        return Stored(following=tuple(self.after.pop(task.name, [])))

    def failed(self, task: Task, failure: Failure) -> Stored:
        self.failures[task.name] = failure
        return Stored(failed=(task.name,))

    def finish(self) -> None:
        self.ended.append("finish")

    def close(self) -> None:
        self.ended.append("close")


def test_tasks_run_largest_first_behind_those_that_others_wait_for(tmp_path: Path) -> None:
    tasks = [Step(label="small"), Step(label="large", size=9.0), Step(label="check", size=0.0, first=True)]
    work = Steps(tmp_path, tasks, {"large": [Step(label="next", size=5.0)]})
    work.unwanted.add("small")
    told, before = Recorder(), threading.active_count()
    run_inline(work, told)
    assert [value[0] for value in work.values] == ["check", "large", "next"]
    assert work.ended == ["finish", "close"]
    assert work.environment == environment("cpu")
    assert threading.active_count() == before


def test_blas_has_one_thread_inside_and_its_own_number_outside(tmp_path: Path) -> None:
    work = Steps(tmp_path, [Step(label="one")])
    before = [(library["filepath"], library["num_threads"]) for library in threadpool_info()]
    run_inline(work, Recorder())
    assert work.values[0][2] == {1}
    assert [(library["filepath"], library["num_threads"]) for library in threadpool_info()] == before


def test_the_failure_of_one_task_does_not_stop_the_others(tmp_path: Path) -> None:
    work = Steps(tmp_path, [Step(label="bad", size=2.0, fails=ValueError), Step(label="good")])
    run_inline(work, Recorder())
    assert work.failures["bad"].message == "ValueError: bad input"
    assert [value[0] for value in work.values] == ["good"]


def test_a_failure_that_all_share_ends_the_work(tmp_path: Path) -> None:
    work = Steps(tmp_path, [Step(label="bad", size=2.0, fails=ValueError, fatal=True), Step(label="good")])
    with pytest.raises(ScannerError, match="bad input"):
        run_inline(work, Recorder())
    assert work.values == []
    assert work.ended == ["close"]


def test_what_does_not_fit_a_gpu_runs_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanner.engine.inline.check_device", lambda device: None)
    work = Steps(tmp_path, [Step(label="large", size=2.0, fails=torch.OutOfMemoryError), Step(label="small")])
    run_inline(work, Recorder(), device="cuda")
    assert [value[:2] for value in work.values] == [("large", "cpu"), ("small", "cuda")]


def test_without_tasks_the_work_is_finished(tmp_path: Path) -> None:
    work = Steps(tmp_path, [])
    run_inline(work, Recorder())
    assert work.ended == ["finish", "close"]
    assert work.environment == {}
