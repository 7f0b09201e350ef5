"""Heartbeats: running work as another process sees it, and files that are something else."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scanner.store import Heartbeat, open_store
from scanner.store.heartbeat import EXPIRED, STALLED, parse

ID = "0123456789abcdef0123456789abcdef"


def heartbeat(**more: object) -> Heartbeat:
    now = datetime.now(UTC)
    values = {
        "run_id": ID,
        "kind": "scan",
        "what": ("org/model", "näme\x1b[31m"),
        "host": "here",
        "pid": 7,
        "started_at": now - timedelta(hours=1),
        "updated_at": now,
        "done": 3,
        "total": 10,
        "cost_done": 1.5,
        "cost": 4.0,
        "failed": 1,
        "workers": 2,
        "wanted_workers": 2,
        "stages": {"read": 0.5, "decompose": 2.0},
        "bytes_read": 1 << 40,
    }
    return Heartbeat(**(values | more))  # type: ignore[arg-type]


def test_what_is_written_is_read_by_another_store_object_until_it_ends(tmp_path: Path) -> None:
    store, other = open_store(str(tmp_path), create=True), open_store(str(tmp_path))
    assert other.running() == []
    state = heartbeat()
    store.beat(state)
    assert other.running() == [state]
    later = dataclasses.replace(state, done=4)
    store.beat(later)
    second = heartbeat(run_id="f" * 32, started_at=state.started_at - timedelta(days=1), kind="compare")
    store.beat(second)
    assert other.running() == [second, later], "the oldest run first, each once"
    store.end_beat(ID)
    store.end_beat(ID)
    assert other.running() == [second]


def test_work_without_a_heartbeat_for_long_is_stalled() -> None:
    assert not heartbeat().stalled
    assert heartbeat(updated_at=datetime.now(UTC) - STALLED - timedelta(seconds=1)).stalled


def test_heartbeats_of_killed_runs_are_removed_by_the_next_run(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), create=True)
    old = heartbeat(updated_at=datetime.now(UTC) - EXPIRED - timedelta(seconds=1))
    recent = heartbeat(run_id="e" * 32, updated_at=datetime.now(UTC) - STALLED - timedelta(seconds=1))
    store.beat(old)
    store.beat(recent)
    store.remove_expired_beats()
    assert store.running() == [recent]


def test_a_heartbeat_of_a_later_version_is_read(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), create=True)
    store.beat(heartbeat())
    [path] = (tmp_path / "running").glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"more": 1}))
    assert [one.pid for one in store.running()] == [7]


def test_in_memory_of_an_object_store(tmp_path: Path) -> None:
    store = open_store("memory://heartbeats", create=True)
    store.beat(heartbeat())
    assert [one.pid for one in open_store("memory://heartbeats").running()] == [7]
    store.end_beat(ID)
    assert store.running() == []


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "f" * 32},
        {"kind": 3},
        {"kind": "x" * 5000},
        {"what": "abc" * 2000},
        {"what": [1]},
        {"host": None},
        {"pid": -1},
        {"pid": True},
        {"done": 1.5},
        {"total": 2**63},
        {"started_at": "yesterday"},
        {"updated_at": 5},
        {"cost": "NaN"},
        {"cost": float("nan")},
        {"cost_done": float("inf")},
        {"stages": []},
        {"stages": {"read": "long"}},
    ],
)
def test_a_file_that_is_no_heartbeat_is_ignored(tmp_path: Path, change: dict[str, object]) -> None:
    store = open_store(str(tmp_path), create=True)
    store.beat(heartbeat())
    [path] = (tmp_path / "running").glob("*.json")
    good = json.loads(path.read_text())
    assert parse(ID, json.dumps(good).encode()) is not None
    path.write_text(json.dumps(good | change))
    assert store.running() == []


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b" " * (2 << 20), b"null"])
def test_broken_files_are_ignored(tmp_path: Path, content: bytes) -> None:
    store = open_store(str(tmp_path), create=True)
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / f"{ID}.json").write_bytes(content)
    (tmp_path / "running" / "..json").write_bytes(b"{}")
    (tmp_path / "running" / "name with spaces.json").write_bytes(b"{}")
    assert store.running() == []
