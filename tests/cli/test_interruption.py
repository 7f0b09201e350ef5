"""A scan that is killed or interrupted in the middle, as a process of its own, and what the same command makes of it then."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from scanner import PoolOptions, open_store
from scanner.engine.scan import scan
from tests.engine.checkpoints import results, slow, staged
from tests.processes import Process, alive, command, descendants, in_the_middle, wait_until

from .conftest import Run

MATRICES = 40
COMMAND = [sys.executable, "-m", "scanner.cli.main", "scan"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint whose scan by one worker takes some seconds."""
    return slow(tmp_path_factory.mktemp("interrupted") / "model", matrices=MATRICES, size=700)


@pytest.fixture(scope="module")
def undisturbed(model: str, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> dict[str, Any]:
    """The rows of a scan that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    scan(model, store=folder, pool=PoolOptions(workers=2))
    return results(open_store(str(folder)))


def running(model: str, store: Path, errors: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """The command in the middle of its scan."""
    arguments = [*COMMAND, model, "--store", str(store), "--workers", "1"]
    return in_the_middle(arguments, errors, lambda: staged(store) >= 3)


def interrupted(driver: subprocess.Popen[bytes], how: str) -> set[Process]:
    """Send the signal; what the driver had started until then."""
    started = descendants(driver.pid)
    if how == "SIGINT to the group":  # as a terminal does
        os.killpg(driver.pid, signal.SIGINT)
    else:
        driver.send_signal(signal.Signals[how])
    return started


@pytest.mark.parametrize("how", ["SIGINT", "SIGINT to the group", "SIGTERM"])
def test_an_interrupted_scan_ends_and_keeps_what_is_finished(
    rmtscan: Run, model: str, undisturbed: dict[str, Any], tmp_path: Path, how: str
) -> None:
    store, errors = tmp_path / "store", tmp_path / "errors"
    with running(model, store, errors) as driver:
        started = interrupted(driver, how)
        out, _ = driver.communicate(timeout=30)
    told = errors.read_text()
    kept = staged(store)
    assert (driver.returncode, out) == (130, b""), told
    assert 3 <= kept < MATRICES
    assert "Traceback" not in told
    [line] = [line for line in told.splitlines() if line.startswith("interrupted")]
    assert f"existing results are kept in {store}; the same command resumes" in line
    assert len(started) > 2, "Ray and a worker were there"
    wait_until(lambda: not alive(started), f"the end of all that {how} should end", seconds=20)

    if how != "SIGINT":  # what is in the store does not know of the signal: once is enough
        return
    again = rmtscan("scan", model, "--store", store, "--workers", 1, "--format", "json")
    assert again.status == 0
    assert f"({kept} have results from an earlier run)" in again.err
    assert [row["analysed"] for row in json.loads(again.out)] == [MATRICES]
    assert results(open_store(str(store))) == undisturbed


def test_a_killed_driver_loses_only_what_was_in_flight(model: str, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    store = tmp_path / "store"
    with running(model, store, tmp_path / "errors") as driver:
        workers = {process for process in descendants(driver.pid) if command(process[0]).startswith("ray::Worker")}
        driver.kill()
        driver.wait()
    kept = staged(store)
    assert 3 <= kept < MATRICES
    assert open_store(str(store)).committed() == []
    assert open_store(str(store)).query("scans").num_rows == 0, "readers see committed scans only"
    assert workers
    wait_until(lambda: not alive(workers), "the end of the workers whose driver was killed", seconds=20)

    done = subprocess.run(
        [*COMMAND, model, "--store", str(store), "--format", "json"], capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    assert f"({kept} have results from an earlier run)" in done.stderr.decode()
    found = results(open_store(str(store)))
    tensors = [row["tensor"] for row in found["matrices"]]
    assert len(tensors) == len(set(tensors)) == MATRICES
    assert found == undisturbed
    assert staged(store) == 0
