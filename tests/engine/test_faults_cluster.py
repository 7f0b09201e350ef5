"""Faults of a cluster in mid-scan: each ends with exactly the rows of an undisturbed scan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scanner import open_store

from .checkpoints import results, slow

#: Two clusters and five scans: about a minute on a free machine, several on a busy one.
pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parent.parent.parent
MATRICES, SIZE = 110, 90


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The stores and the report of `faulty_cluster`."""
    folder = tmp_path_factory.mktemp("faulty")
    model = slow(folder / "model", matrices=MATRICES, size=SIZE)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    script = [sys.executable, "-m", "tests.engine.faulty_cluster", model, str(folder)]
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads((folder / "told.json").read_text())


@pytest.mark.parametrize("scenario", ["raylet", "moved", "head"])
def test_rows_are_those_of_an_undisturbed_scan(faulty: tuple[Path, dict[str, Any]], scenario: str) -> None:
    folder, told = faulty
    expected, found = (results(open_store(str(folder / name))) for name in ("quiet", scenario))
    assert (told[scenario]["analyzed"], told[scenario]["failed"]) == (MATRICES, 0)
    assert len(expected["matrices"]) == MATRICES
    assert len(expected["vectors"]) == MATRICES * SIZE
    for table in expected:
        assert found[table] == expected[table], table


def test_a_worker_was_lost(faulty: tuple[Path, dict[str, Any]]) -> None:
    assert any(command.startswith("ray::Worker") for command in faulty[1]["killed"])


def test_a_lost_head_is_one_clear_error(faulty: tuple[Path, dict[str, Any]]) -> None:
    _, told = faulty
    assert "the head of the Ray cluster at " in told["head"]["error"]
    assert "the same command resumes on a new cluster" in told["head"]["error"]
    assert "\n" not in told["head"]["error"]
