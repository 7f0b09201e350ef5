"""Workers that hold a share of a GPU give the rows that workers without one give; the GPU is one that only Ray believes in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scanner import open_store
from tests.fixtures.store import unpack

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = unpack(tmp_path_factory.mktemp("gpu"))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "tests.golden.fake_gpu", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def rows(folder: Path, columns: str, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = open_store(str(folder)).sql(f"SELECT {columns} FROM {table} ORDER BY ALL").to_pylist()
    return found


@pytest.mark.parametrize("table", ["scans", "experiments"])
def test_workers_hold_their_share(table: str, stores: Path) -> None:
    for name, share in (("gpu", 0.5), ("cpu", 0.0)):
        (row,) = rows(stores / name, "environment", table)
        environment = json.loads(row["environment"])
        assert (environment["workers"], environment["gpus_per_worker"]) == (2, share)


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("matrices", "scan_id, tensor, sigma, mp_ks, u_p_mean, v_p_mean, device"),
        ("vectors", "scan_id, tensor, k, singular_value, u_ks, v_ks"),
        ("ablations", 'run_id, roles, "set", removed, baseline, value, delta, stderr'),
    ],
)
def test_rows_are_the_same(table: str, columns: str, stores: Path) -> None:
    found = rows(stores / "gpu", columns, table)
    assert found
    assert found == rows(stores / "cpu", columns, table)
