"""Scans that lose a worker or a node while they run, and scans on simulated GPUs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scanner import PoolOptions, open_store
from scanner.engine.scan import scan
from tests.processes import ray_workers, wait_until

from .checkpoints import results, slow
from .observer import Recorder

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The files and the report of `fragile_cluster`."""
    folder = tmp_path_factory.mktemp("fragile")
    model = slow(folder / "model", matrices=8, size=100)
    script = [sys.executable, "-m", "tests.engine.fragile_cluster", model, str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads((folder / "told.json").read_text())


@pytest.mark.usefixtures("local_ray")
def test_a_worker_that_is_killed_costs_nothing_but_time(tmp_path: Path) -> None:
    model = slow(tmp_path / "model", matrices=10, size=200)
    scan(model, store=tmp_path / "quiet", pool=PoolOptions(workers=1))
    killed: list[int] = []

    def kill(done: int) -> None:
        if done == 4:
            wait_until(lambda: any(ray_workers()), "a worker")
            killed.extend(ray_workers())
            os.kill(killed[0], signal.SIGKILL)

    told = Recorder(kill)
    report = scan(model, store=tmp_path / "store", observer=told, pool=PoolOptions(workers=1))
    assert len(killed) == 1
    assert 0 in told.alive, "the loss was told"
    assert (report.models[0].analyzed, report.failed) == (10, 0)
    assert results(open_store(str(tmp_path / "store"))) == results(open_store(str(tmp_path / "quiet")))


def test_a_node_that_goes_away_costs_nothing_but_time(fragile: tuple[Path, dict[str, Any]]) -> None:
    folder, told = fragile
    assert told["nodes"] == 2, "the node was taken away, and another one came"
    whole = told["whole"]
    assert whole["alive"] == [1, 0, 1]
    assert (whole["analyzed"], whole["failed"]) == (8, 0)
    found = results(open_store(str(folder / "whole")))
    assert found == results(open_store(str(folder / "half")))
    assert len(found["matrices"]) == 8
    assert len(found["vectors"]) == 8 * 100


def test_one_worker_takes_a_gpu_or_its_share_and_falls_back_to_the_cpu(fragile: tuple[Path, dict[str, Any]]) -> None:
    assert fragile[1]["together"] == [2], "two workers shared the GPU"
    for name, workers, share in (("whole", 1, 1.0), ("half", 2, 0.5)):
        told = fragile[1][name]
        assert (told["environment"]["workers"], told["environment"]["gpus_per_worker"]) == (workers, share)
        assert told["devices"] == ["cpu"]


def test_gpus_and_the_cores_beside_them_are_used_together(fragile: tuple[Path, dict[str, Any]]) -> None:
    """Two cores and one GPU: a worker with the GPU, which is none for torch, and one with the other core."""
    folder, told = fragile
    assert (told["mixed"]["environment"]["workers"], told["mixed"]["environment"]["gpus_per_worker"]) == (2, 1.0)
    assert told["mixed"]["notes"] == []
    assert results(open_store(str(folder / "mixed"))) == results(open_store(str(folder / "whole")))
    [rate] = told["rates"]
    assert 1e7 < rate < 1e13, "a worker on this node has measured one core, once"


def devices(told: dict[str, Any], name: str) -> list[str]:
    found = told["devices"][name]
    assert found["lost"] == []
    return sorted({where.partition(" ")[0] for where in found["where"]})


def test_a_gpu_that_is_slower_than_a_core_is_not_used_and_one_line_says_so(
    fragile: tuple[Path, dict[str, Any]],
) -> None:
    _, told = fragile
    slow = told["devices"]["slow"]
    assert devices(told, "slow") == ["cpu"]
    assert len(slow["where"]) == 12
    [note] = slow["notes"]
    assert "is slower in float64 than one of its cores (5.0e-01 units of cost per second, the core 1.0e+00)" in note
    assert {wanted for _, wanted in slow["counts"]} == {2}, "a worker on the core beside it takes its place"


def test_work_is_divided_by_measured_speed(fragile: tuple[Path, dict[str, Any]]) -> None:
    _, told = fragile
    assert devices(told, "equal") == ["cpu", "cuda"]
    assert told["devices"]["equal"]["notes"] == []
    fast = [where.partition(" ")[0] for where in told["devices"]["fast"]["where"]]
    assert len(fast) == 20
    # The worker without a GPU may be ready first, and then has nobody to leave its first tasks to.
    assert set(fast[-8:]) == {"cuda"}
    assert devices(told, "one") == ["cuda"], "a number of workers bounds all of them, and those with a GPU come first"
    assert told["devices"]["one"]["wanted"] == 1


def test_a_node_that_joins_gets_workers(fragile: tuple[Path, dict[str, Any]]) -> None:
    _, told = fragile
    joined = told["joined"]
    assert joined["wanted"] == 2
    assert joined["lost"] == []
    assert len(joined["where"]) == 100
    assert max(joined["counts"]) == [3, 3]
    assert {where.partition(" ")[2] for where in joined["where"]} == {*told["ids"][-2:]}


def test_a_matrix_for_which_the_memory_of_a_gpu_does_not_suffice_goes_to_a_core(tmp_path: Path) -> None:
    model = slow(tmp_path / "model", matrices=4, size=100)
    script = [sys.executable, "-m", "tests.engine.full_gpu", model, str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    gpu, cpu = (open_store(str(tmp_path / name)) for name in ("gpu", "cpu"))
    assert gpu.sql("SELECT * FROM failures").to_pylist() == []
    assert len(results(gpu)["matrices"]) == 4
    assert results(gpu) == results(cpu)
    notes = json.loads((tmp_path / "notes.json").read_text())
    assert 1 <= len(notes) <= 2, "the worker holds two tasks, and gets no other"
    assert all("the memory of a GPU did not suffice for" in note for note in notes)
