"""`rmtscan status`: running work of other processes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scanner.store import Store, open_store

from .conftest import Run

NOW = datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What the store tells of a running process."""

    kind: str
    what: tuple[str, ...]
    updated_at: datetime
    host: str = "node1"
    pid: int = 7
    started_at: datetime = NOW - timedelta(hours=1)
    done: int = 3
    total: int = 10
    failed: int = 1
    workers: int = 2
    stages: dict[str, float] = field(default_factory=dict)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    beats = [
        Beat(kind="scan", what=("org/one", "org/two"), updated_at=NOW),
        Beat(kind="ablate", what=("org/three",), updated_at=NOW - timedelta(minutes=10)),
    ]
    monkeypatch.setattr(Store, "running", lambda self: beats, raising=False)
    return open_store(str(tmp_path / "store"), create=True)


def test_running_work_is_a_second_table(rmtscan: Run, store: Store) -> None:
    told = rmtscan("status", "--store", store.url)
    assert told.status == 0
    scans, _, work = told.out.decode().partition("\n\n")
    assert "scan_id" in scans
    lines = [line.split() for line in work.splitlines()]
    assert lines[0][:6] == ["running", "models", "done", "total", "failed", "workers"]
    assert lines[2][:7] == ["scan", "org/one,", "org/two", "3", "10", "1", "2"]
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
