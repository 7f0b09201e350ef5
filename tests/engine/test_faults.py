"""Workers and drivers that are stopped or killed in mid-scan, and two drivers at once: rows are those of an undisturbed scan."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import ray

from scanner import PoolOptions, ScanReport, open_checkpoint, open_store
from scanner.engine.scan import ScanWork, scan
from scanner.engine.tasks import MatrixTask
from tests.processes import ray_workers, wait_until

from .checkpoints import results, slow, staged
from .observer import Recorder
from .poison import HANGING, LETHAL, PoisonedTask

pytestmark = pytest.mark.usefixtures("local_ray")

ROOT = Path(__file__).parent.parent.parent
MATRICES, SIZE = 100, 90
#: Workers, and drivers, that are killed; each is replaced by a new process, which takes seconds.
KILLS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def model(folder: Path) -> str:
    return slow(folder / "model", matrices=MATRICES, size=SIZE)


Rows = dict[str, list[dict[str, object]]]


@pytest.fixture(scope="module")
def expected(folder: Path, model: str, local_ray: None) -> Rows:
    """The rows of an undisturbed scan."""
    found, _ = scanned(model, folder / "quiet", Recorder(), workers=1)
    assert len(found["matrices"]) == MATRICES
    assert len(found["vectors"]) == MATRICES * SIZE
    return found


def scanned(model: str, store: Path, recorder: Recorder, **options: float) -> tuple[Rows, ScanReport]:
    pool = PoolOptions(**options)  # type: ignore[arg-type]
    report = scan(model, store=store, pool=pool, observer=recorder, ensembles=())
    assert (report.models[0].analyzed, report.failed) == (MATRICES, 0)
    return results(open_store(str(store))), report


@contextmanager
def driver(*arguments: str | Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that scans, with these additional variables; it has ended when the block has."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.engine.driver", *map(str, arguments)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


class Hung(Recorder):
    def __init__(self, after: Callable[[int], None]) -> None:
        super().__init__(after)
        self.hung_tasks: list[list[str]] = []

    def hung(self, tasks: list[str], seconds: float) -> None:
        self.hung_tasks.append(tasks)


def test_a_stopped_worker_is_replaced_after_the_time_limit(model: str, expected: Rows, tmp_path: Path) -> None:
    stopped: list[int] = []

    def stop(done: int) -> None:
        if done == 20:
            stopped.extend(ray_workers())
            os.kill(stopped[0], signal.SIGSTOP)

    recorder = Hung(stop)
    found, _ = scanned(model, tmp_path / "store", recorder, workers=1, task_timeout=6.0)
    assert len(stopped) == 1
    assert found == expected
    [tasks] = recorder.hung_tasks
    assert 1 <= len(tasks) <= 2
    wait_until(lambda: stopped[0] not in ray_workers(), "the end of the stopped worker")


@pytest.mark.parametrize("poison", [LETHAL, HANGING])
def test_a_matrix_that_kills_every_worker_or_hangs_is_one_failure(
    model: str, expected: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: str
) -> None:
    planned = ScanWork._matrix_tasks

    def poisoned(self: ScanWork, *given: Any) -> list[MatrixTask]:
        tasks = planned(self, *given)
        return [
            PoisonedTask(**{one.name: getattr(task, one.name) for one in fields(task)}, poison=poison) for task in tasks
        ]

    monkeypatch.setattr(ScanWork, "_matrix_tasks", poisoned)
    options = PoolOptions(workers=2, task_timeout=6.0 if poison == HANGING else None)
    report = scan(model, store=tmp_path / "store", pool=options, observer=Hung(lambda done: None), ensembles=())
    assert (report.models[0].analyzed, report.failed, report.exit_status) == (MATRICES - 1, 1, 3)
    found = results(open_store(str(tmp_path / "store")))
    tensor = f"{poison}self_attn.q_proj.weight"
    [failure] = found["failures"]
    assert (failure["tensor"], failure["transient"]) == (tensor, False)
    assert "lost 3 workers" in str(failure["message"])
    for table in ("matrices", "vectors"):
        assert found[table] == [row for row in expected[table] if row["tensor"] != tensor], table


def test_workers_that_are_killed_at_random_moments_cost_nothing_but_time(
    model: str, expected: Rows, tmp_path: Path
) -> None:
    chance = random.Random(12)
    moments = set(chance.sample(range(5, MATRICES - 10), KILLS))
    killed: list[int] = []

    def kill(done: int) -> None:
        # Both workers may be starting at such a moment: then the next one is killed when there is one.
        due = sum(moment <= done for moment in moments) - len(killed)
        there = [pid for pid in ray_workers() if pid not in killed]
        if due and there:
            killed.append(chance.choice(there))
            os.kill(killed[-1], signal.SIGKILL)

    recorder = Recorder(kill)
    found, _ = scanned(model, tmp_path / "store", recorder, workers=2)
    assert len(killed) == KILLS
    assert found == expected


def test_drivers_that_are_killed_at_random_moments_cost_nothing_but_time(
    model: str, expected: Rows, tmp_path: Path
) -> None:
    store, chance = tmp_path / "store", random.Random(3)
    address = ray.get_runtime_context().gcs_address
    kept: list[int] = []
    for number in range(KILLS):
        with driver(model, store, address, WAITS_AFTER="6") as process:
            if number % 3 == 0:  # at any time, often before the first result
                time.sleep(chance.uniform(0.5, 6.0))
            else:
                goal = staged(store) + chance.randint(1, 4)
                wait_until(lambda: staged(store) >= goal or process.poll() is not None, f"{goal} matrices")  # noqa: B023
            assert process.poll() is None, "it was still at work"
            process.kill()
        kept.append(staged(store))
    assert kept == sorted(kept), "what is finished stays"
    assert 0 < kept[-1] < MATRICES
    assert open_store(str(store)).committed() == []
    with driver(model, store, address) as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    assert json.loads(out)["analyzed"] == MATRICES
    assert results(open_store(str(store))) == expected


def test_a_killed_driver_of_a_large_checkpoint_loses_nothing_when_its_content_is_hashed(
    model: str, expected: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parts have a provisional id. The next run knows the content from the start, and finds them all the same."""
    store, cache = tmp_path / "store", str(tmp_path / "hashes.json")
    address = ray.get_runtime_context().gcs_address
    large = {"HASHED_AT_ONCE": "1000000", "RMTSCAN_HASH_CACHE": cache}
    with driver(model, store, address, WAITS_AFTER="20", **large) as process:
        wait_until(lambda: staged(store) >= 5 or process.poll() is not None, "five matrices")
        assert process.poll() is None, "it was still at work"
        process.kill()
    kept = staged(store)
    assert 5 <= kept < MATRICES
    assert [path.name.startswith("provisional-") for path in (store / "staging").iterdir()] == [True]
    monkeypatch.setenv("RMTSCAN_HASH_CACHE", cache)
    open_checkpoint(model)  # the cache of hashes is complete
    with driver(model, store, address, **large) as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    assert json.loads(out) == {"analyzed": MATRICES, "failed": 0, "error": "", "kept": kept}
    assert results(open_store(str(store))) == expected
    assert open_store(str(store)).unfinished() == []
    assert not (store / "staging").is_dir() or not [*(store / "staging").iterdir()]


def test_two_drivers_at_once_leave_one_scan(model: str, expected: Rows, tmp_path: Path) -> None:
    store, one, two = tmp_path / "store", str(tmp_path / "one"), str(tmp_path / "two")
    address = ray.get_runtime_context().gcs_address
    with driver(model, store, address, one, two) as first, driver(model, store, address, two, one) as second:
        for process in (first, second):
            out, err = process.communicate(timeout=200)
            assert process.returncode == 0, out + err
            told = json.loads(out)
            assert (told["analyzed"], told["failed"], told["error"]) == (MATRICES, 0, "")
    assert results(open_store(str(store))) == expected
    assert {found.state for found in open_store(str(store)).verify()} == {"whole"}
