"""The plan of a night: budgets, priority, and what the others wait for."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from scanner.fleet.config import Budget, Night
from scanner.fleet.plan import Base, Load, Plan, Rate, make_plan, prioritized, share_of, superseded
from scanner.fleet.releases import Release

NOW = datetime(2026, 11, 1, tzinfo=UTC)
GB = 10**9


def release(name: str, gigabytes: int = 1, hours: float = 0, **more: Any) -> Release:
    size = {"bytes": gigabytes * GB, "parameters": gigabytes * GB // 2}
    return Release(repository=name, commit="0" * 40, last_modified=NOW - timedelta(hours=hours), **size | more)


def plan(*releases: Release, used: Load | None = None, base_of: Any = None, size_of: Any = None, **budget: Any) -> Plan:
    limits = {"models": 0, "bytes": 0, "hours": 0.0, "parameters": 0} | budget
    return make_plan(
        releases,
        Budget(**limits),
        night=Night(),
        now=NOW,
        rate=Rate(),
        used=used or Load(),
        base_of=base_of,
        size_of=size_of,
    )


def names(made: Plan) -> list[str]:
    return [entry.release.repository for entry in made.entries]


def test_what_fits_is_planned_in_order_and_smaller_ones_fill_the_rest() -> None:
    made = plan(release("a", 4), release("b", 5, hours=1), release("c", 3, hours=2), bytes=8 * GB)
    assert names(made) == ["a", "c"]
    assert [(one.repository, one.reason) for one in made.others] == [
        ("b", "does not fit into what is left of the budget (bytes)")
    ]
    assert made.load.bytes == 7 * GB


@pytest.mark.parametrize("limit", [{"models": 1}, {"bytes": GB}, {"parameters": GB // 2}])
def test_every_limit_counts_what_was_used_before(limit: dict[str, int]) -> None:
    assert names(plan(release("a"), release("b"), **limit)) == ["a"]
    used = Load(models=1, bytes=GB, parameters=GB // 2)
    assert names(plan(release("a"), used=used, **limit)) == []


def test_hours_are_those_of_the_rate() -> None:
    seconds = Rate(workers=4).seconds(GB // 2)
    assert seconds == pytest.approx(1e-9 * (5e8) ** (4 / 3) / 4)
    hours = Rate().seconds(GB // 2) / 3600
    assert names(plan(release("a"), release("b"), hours=1.5 * hours)) == ["a"]
    never = plan(release("a"), hours=0.5 * hours).others
    assert "larger than the budget of a whole night (hours)" in str(never[0].reason)


def test_the_order_is_listed_repositories_then_failures_then_the_config() -> None:
    old, new = release("old", 1, hours=5, downloads=9), release("new", 2, downloads=1)
    failed, named = release("failed", 9, hours=9, attempts=1), release("named", 9, hours=9, branch="main")
    found = {
        order: [one.repository for one in prioritized([old, new, failed, named], order)]
        for order in ("newest", "oldest", "popular", "smallest")
    }
    assert found == {
        "newest": ["named", "failed", "new", "old"],
        "oldest": ["named", "failed", "old", "new"],
        "popular": ["named", "failed", "old", "new"],
        "smallest": ["named", "failed", "old", "new"],
    }


def test_a_size_that_is_not_listed_is_looked_up_only_while_there_is_room() -> None:
    asked: list[str] = []

    def size_of(one: Release) -> int | Release:
        asked.append(one.repository)
        return one.now("skipped", "it has no file with weights") if one.repository == "b" else GB

    unsized = [replace(release(name, hours=n), bytes=None, parameters=None) for n, name in enumerate("abcd")]
    made = plan(*unsized, models=2, size_of=size_of)
    assert names(made) == ["a", "c"]
    assert asked == ["a", "b", "c"]
    assert {one.repository: one.state for one in made.others} == {"b": "skipped", "d": "waiting"}


def test_a_base_is_scanned_once_and_left_out_if_it_does_not_fit() -> None:
    base = Base(repository="org/base", commit="1" * 40, scanned=False, bytes=GB)
    tuned = [release(name, hours=n, base_model="org/base") for n, name in enumerate("ab")]
    made = plan(*tuned, base_of=lambda _: base)
    first, second = (entry.load.bytes for entry in made.entries)
    assert (first, second) == (6 * GB, 5 * GB)  # scan, comparison, and once the base
    small = plan(*tuned, base_of=lambda _: base, bytes=2 * GB)
    assert names(small) == ["a", "b"]
    assert [entry.base for entry in small.entries] == [None, None]
    assert str(small.entries[0].note) == "the comparison with its base does not fit into the budget (bytes)"
    [lost] = plan(tuned[0], base_of=lambda _: "it is gone").entries
    assert (lost.base, lost.note) == (None, "it is gone")


def test_what_waits_too_long_is_given_up() -> None:
    [gone] = plan(release("a", 9, first_seen_at=NOW - timedelta(days=31)), bytes=GB).others
    assert gone.state == "skipped"
    assert str(gone.reason).startswith("waited for 30 days: larger than the budget")


def test_a_newer_commit_replaces_one_that_waits() -> None:
    old, new = release("a"), replace(release("a"), commit="1" * 40)
    done = replace(release("b"), state="scanned")
    [found] = superseded([new, replace(release("b"), commit="2" * 40)], [old, done])
    assert (found.key, found.state, found.reason) == (old.key, "skipped", f"a newer commit follows: {'1' * 12}")
    assert superseded([old], [old]) == []


def test_a_share_of_a_budget_keeps_what_is_not_limited() -> None:
    share = share_of(Budget(models=5, bytes=0, hours=8.0), 0.1)
    assert (share.models, share.bytes, share.hours) == (1, 0, pytest.approx(0.8))
