"""What one night leaves to the next: the watermark, nights that were interrupted, and newer commits. Nothing is scanned."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scanner.fleet.config import Watch
from scanner.fleet.releases import Ledger, Night, Release
from scanner.store import Store, open_store
from tests.checkpoint.sources.hub_server import Hub

from .conftest import Run
from .releases import add

DAY = timedelta(days=1)


def begun(store: Store, *releases: Release, ago: timedelta, watch: str = "w", **more: object) -> Night:
    """Write a night that began some time ago, with releases."""
    started = datetime.now(UTC) - ago
    night = Night(night_id=f"{started:%Y%m%dT%H%M%SZ}-0000", watch_id=watch, started_at=started)
    night = replace(night, **more)  # type: ignore[arg-type]
    ledger = Ledger.read(store)
    ledger.begin(night)
    for release in releases:
        ledger.set(night, release)
    return ledger.write(night)


def opened(folder: Path) -> Store:
    return open_store(str(folder / "store"), create=True)


def test_a_first_night_without_releases_has_a_watermark(hub: Hub, night: Run, tmp_path: Path) -> None:
    add(hub, "other/a")
    before = datetime.now(UTC)
    assert night("one").digest is not None
    [row] = opened(tmp_path).query("nights").to_pylist()
    assert before <= row["watermark"] <= datetime.now(UTC)
    assert night("one").nothing
    assert night("one", night="length_hours = 0").nothing
    # Days later, the Hub is asked from there on, and not for the last 24 hours.
    started = before - 3 * DAY
    begun(opened(tmp_path), ago=3 * DAY, watch=Watch(authors=("two",)).watch_id, watermark=started, state="done")
    add(hub, "two/a")
    hub.repositories["two/a"].modified = before - 2 * DAY
    assert [one.release.repository for one in night("two", dry_run=True).planned] == ["two/a"]


def test_a_watermark_after_its_night_counts_as_the_start_of_the_night(store: Store) -> None:
    ahead = datetime.now(UTC) + 365 * DAY
    done = begun(store, ago=2 * DAY, watermark=ahead, finished_at=datetime.now(UTC) - DAY, state="done")
    assert Ledger.read(store).watermark("w") == done.started_at
    killed = begun(store, ago=DAY, watermark=ahead)
    assert Ledger.read(store).watermark("w") == killed.started_at
    mark = datetime.now(UTC) - DAY / 2
    begun(store, ago=DAY / 3, watermark=mark, state="done")
    assert Ledger.read(store).watermark("w") == mark
    assert Ledger.read(store).watermark("x") is None


def test_a_watch_that_was_edited_goes_back_to_the_last_night(hub: Hub, night: Run, tmp_path: Path) -> None:
    add(hub, "one/a")
    hub.repositories["one/a"].modified = datetime.now(UTC) - 2 * DAY
    assert night("one", dry_run=True).planned == ()  # a new watch looks back a day
    begun(opened(tmp_path), ago=3 * DAY, watermark=datetime.now(UTC) - 3 * DAY, state="done")
    assert [one.release.repository for one in night("one", dry_run=True).planned] == ["one/a"]
    # One of which the last night is from today looks back as many hours as it says.
    begun(opened(tmp_path), ago=DAY / 24, watch="x", watermark=datetime.now(UTC) - DAY / 24, state="done")
    assert night("one", dry_run=True).planned == ()


def test_a_dry_run_plans_no_commit_that_a_newer_one_follows(hub: Hub, night: Run, tmp_path: Path) -> None:
    old = add(hub, "one/a", 1)
    begun(opened(tmp_path), Release(repository="one/a", commit=old, bytes=100, parameters=50), ago=DAY, state="done")
    new = add(hub, "one/a", 2)
    report = night("one", dry_run=True)
    assert [one.release.commit for one in report.planned] == [new]
    assert [(one.commit, one.state) for one in report.releases] == [(new, "waiting"), (old, "skipped")]


def test_an_interrupted_night_of_another_watch_gets_its_digest(hub: Hub, night: Run, tmp_path: Path) -> None:
    expired = begun(opened(tmp_path), Release(repository="one/a", commit="c" * 40, state="scanned"), ago=2 * DAY)
    running = begun(opened(tmp_path), ago=DAY / 24, watch="x")
    night("one")
    found = {row["night_id"]: row["state"] for row in opened(tmp_path).query("nights").to_pylist()}
    assert (found[expired.night_id], found[running.night_id]) == ("done", "planned")
    digests = tmp_path / "store" / "digests"
    assert "one/a" in (digests / f"{expired.night_id}.json").read_text()
    assert not (digests / f"{running.night_id}.json").exists()
