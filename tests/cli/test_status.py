"""`rmtscan status`: running work of other processes."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from wcwidth import wcswidth

from scanner.cli.tables import duration
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
    assert " ".join(lines[0]) == "running models done total percent per_minute remaining failed state host"
    assert " ".join(lines[2]) == "scan org/one, org/two 3 10 25.0 0.0500 3 h 00 min 1 running node1"
    assert " ".join(lines[3]) == "ablate org/three 3 10 25.0 1 stalled node1", "it has no rate: it does nothing"


def test_running_work_fits_a_terminal(rmtscan: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(Store, "running", lambda _: [beat("scan", ("org/" + "long" * 60, "\x1b[2J"), 0)])
    lines = rmtscan("status", "--running", "--store", store.url).out.decode().splitlines()
    assert max(map(wcswidth, lines)) <= 80
    assert all(line.isprintable() for line in lines)
    assert "3 h 00 min" in lines[-1]


def test_watching_ends_when_nothing_runs_any_more(rmtscan: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [[beat("scan", ("org/one",), 0)], [beat("scan", ("org/two",), 0), beat("ablate", ("old",), 60)], []]
    monkeypatch.setattr(Store, "running", lambda _: looks.pop(0))
    monkeypatch.setattr("scanner.cli.status.time.sleep", lambda _: None)
    told = rmtscan("status", "--watch", "--store", store.url)
    text = told.out.decode()
    assert (told.status, told.err, looks) == (0, "nothing is running any more\n", [])
    assert [text.count(f"org/{name}") for name in ("one", "two")] == [1, 1]
    assert text.count(f" UTC, {store.url}") == 2
    monkeypatch.setattr(Store, "running", lambda _: [beat("ablate", ("old",), 60)])
    told = rmtscan("status", "--watch", "--store", store.url)
    assert (told.status, told.err, "stalled" in told.out.decode()) == (0, "nothing is running\n", True)
    assert rmtscan("status", "--watch", "--format", "json", "--store", store.url).status == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (273600, "3 d 04 h"),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


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
