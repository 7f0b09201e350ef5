"""`rmtscan status`: running work of other processes."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scanner.store import Store, open_store
from scanner.store.heartbeat import Heartbeat

from .conftest import Run


def beat(kind: str, what: tuple[str, ...], minutes: float) -> Heartbeat:
    """The state of work that was last written some minutes ago."""
    now = datetime.now(UTC)
    return Heartbeat(
        run_id=uuid.uuid4().hex,
        kind=kind,
        what=what,
        host="node1",
        pid=7,
        started_at=now - timedelta(hours=1),
        updated_at=now - timedelta(minutes=minutes),
        done=3,
        total=10,
        cost_done=1.0,
        cost=4.0,
        failed=1,
        workers=2,
        wanted_workers=2,
    )


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    def running(_: Store) -> list[Heartbeat]:
        return [beat("scan", ("org/one", "org/two"), 0), beat("ablate", ("org/three",), 60)]

    monkeypatch.setattr(Store, "running", running)
    return open_store(str(tmp_path / "store"), create=True)


def test_running_work_is_a_second_table(rmtscan: Run, store: Store) -> None:
    told = rmtscan("status", "--store", store.url)
    assert told.status == 0
    scans, _, work = told.out.decode().partition("\n\n")
    assert "scan_id" in scans
    lines = [line.split() for line in work.splitlines()]
    assert lines[0][:7] == ["running", "models", "done", "total", "percent", "failed", "workers"]
    assert lines[2][:8] == ["scan", "org/one,", "org/two", "3", "10", "25", "1", "2"]
    assert ["running" in lines[2], "stalled" in lines[3]] == [True, True]


def test_other_formats_print_one_table_and_name_the_option_for_the_other(rmtscan: Run, store: Store) -> None:
    told = rmtscan("status", "--store", store.url, "--format", "json")
    assert json.loads(told.out) == []
    assert f"running: 2 (rmtscan status --running --store {store.url})" in told.err
    told = rmtscan("status", "--running", "--store", store.url, "--format", "json")
    rows = json.loads(told.out)
    assert [(row["running"], row["models"], row["state"]) for row in rows] == [
        ("scan", "org/one, org/two", "running"),
        ("ablate", "org/three", "stalled"),
    ]
    assert told.err == ""
