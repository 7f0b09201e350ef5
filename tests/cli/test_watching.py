"""`rmtscan status` from another process while a scan runs: what it counts, what remains, and that watching ends with the scan."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from scanner.store import heartbeat, open_store
from scanner.store.files import StoreFiles
from tests.engine.checkpoints import slow, staged
from tests.processes import in_the_middle, wait_until

from .conftest import Run
from .test_status import beat

MATRICES, CONTROLS = 150, 2
COMMAND = [sys.executable, "-m", "scanner.cli.main"]


def test_watching_a_scan_counts_its_matrices_and_ends_with_it(rmtscan: Run, tmp_path: Path) -> None:
    model, store = slow(tmp_path / "model", matrices=MATRICES, size=700), tmp_path / "store"
    open_store(str(store), create=True)
    dead = beat("ablate", ("org/dead\x1b[2J",), minutes=60)
    heartbeat.write(StoreFiles(str(store)), dead)

    def looks() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(
            rmtscan("status", "--running", "--store", store, "--format", "json").out
        )
        assert [row["state"] for row in rows if row["running"] == "ablate"] == ["stalled"]
        return [row for row in rows if row["running"] == "scan"]

    scan = [*COMMAND, "scan", model, "--store", str(store), "--workers", "1"]
    with in_the_middle(scan, tmp_path / "errors", lambda: staged(store) >= 3) as driver:
        watch = subprocess.Popen(
            [*COMMAND, "status", "--watch", "--store", str(store)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            wait_until(lambda: any(row["done"] for row in looks()) or driver.poll() is not None, "a heartbeat")
            found = looks()
            seen = staged(store)
            if driver.poll() is None:  # else it was faster than its second heartbeat
                [row] = found
                since, updated = (datetime.fromisoformat(row[name]) for name in ("since", "updated"))
                elapsed = (updated - since) / timedelta(seconds=1)
                assert (row["total"], row["failed"], row["pid"]) == (MATRICES + CONTROLS, 0, driver.pid)
                assert row["models"].endswith("model")
                assert 0 < row["done"] <= seen + CONTROLS
                assert row["per_minute"] == pytest.approx(60 * row["done"] / elapsed)
                assert row["seconds_left"] == pytest.approx(elapsed * (100 - row["percent"]) / row["percent"])
                assert datetime.now(UTC) - updated < heartbeat.STALLED
            out, err = watch.communicate(timeout=120)
        finally:
            watch.kill()
        assert driver.wait(timeout=60) == 0
    assert (watch.returncode, err) == (0, b"nothing is running any more\n")
    assert b"\x1b" not in out
    lines = [line.split() for line in out.decode().splitlines()]
    counts = [int(line[2]) for line in lines if line and line[0] == "scan"]
    assert counts == sorted(counts)
    assert {line[3] for line in lines if line and line[0] == "scan"} == {str(MATRICES + CONTROLS)}
    assert lines[-2][0] == "ablate", "what was killed is shown to the end, and nothing waits for it"
    assert "stalled" in lines[-2]
    assert looks() == []
    assert open_store(str(store)).query("scans")["matrices"].to_pylist() == [MATRICES]
