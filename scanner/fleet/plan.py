"""The plan of a night: which releases fit into its budget, in the order of their priority, and what the others wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from scanner.fleet.config import Budget, Night
from scanner.fleet.releases import Release

#: Seconds of one core per parameters^(4/3), until the store has scans that say more: a cautious value for a slow core.
SECONDS_PER_WORK = 1e-9
#: What a comparison costs in addition, in scans of the tuned model: the difference is scanned, and both sides are decomposed again.
_COMPARISON_SCANS, _COMPARISON_READS = 3.0, 4.0
#: Bytes of a parameter where the Hub does not say.
_BYTES_PER_PARAMETER = 2


@dataclass(frozen=True, kw_only=True)
class Load:
    """What something uses of a budget."""

    models: int = 0
    bytes: int = 0
    parameters: int = 0
    seconds: float = 0.0

    def __add__(self, other: Load) -> Load:
        return Load(
            models=self.models + other.models,
            bytes=self.bytes + other.bytes,
            parameters=self.parameters + other.parameters,
            seconds=self.seconds + other.seconds,
        )

    def times(self, factor: float) -> Load:
        """Return a share of this load."""
        return Load(
            models=int(self.models * factor),
            bytes=int(self.bytes * factor),
            parameters=int(self.parameters * factor),
            seconds=self.seconds * factor,
        )

    def exceeds(self, budget: Budget) -> list[str]:
        """Return the names of the limits that this load exceeds."""
        pairs = (
            ("models", self.models, budget.models),
            ("bytes", self.bytes, budget.bytes),
            ("parameters", self.parameters, budget.parameters),
            ("hours", self.seconds, budget.hours * 3600),
        )
        return [name for name, used, limit in pairs if limit and used > limit]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What this machine or cluster is expected to do."""

    seconds_per_work: float = SECONDS_PER_WORK
    """Seconds of one worker per parameters^(4/3)."""
    workers: int = 1

    def seconds(self, parameters: int) -> float:
        """Expected seconds of one scan."""
        return float(self.seconds_per_work * parameters ** (4 / 3) / self.workers)

    def scan(self, size: int, parameters: int) -> Load:
        """Expected load of one scan."""
        return Load(models=1, bytes=size, parameters=parameters, seconds=self.seconds(parameters))

    def comparison(self, size: int, parameters: int) -> Load:
        """Expected load of one comparison, without the scans of both models."""
        return Load(bytes=int(_COMPARISON_READS * size), seconds=_COMPARISON_SCANS * self.seconds(parameters))


@dataclass(frozen=True, kw_only=True)
class Base:
    """The base that a release is compared with."""

    repository: str
    commit: str
    scanned: bool
    """Whether the store has its scan."""
    bytes: int | None = None

    @property
    def reference(self) -> str:
        """The reference that opens exactly this commit."""
        return f"hf://{self.repository}@{self.commit}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A release that is scanned this night."""

    release: Release
    load: Load
    """Of its scan and comparison, and of the scan of its base."""
    base: Base | None = None
    note: str | None = None
    """Why it is not compared with the base that it names."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is scanned this night, in this order, and what is not."""

    entries: tuple[Entry, ...] = ()
    others: tuple[Release, ...] = ()
    """Releases that wait, or are given up, with the reason."""

    @property
    def load(self) -> Load:
        """Expected load of everything."""
        return sum((entry.load for entry in self.entries), Load())


BaseOf = Callable[[str], "Base | str"]
"""Finds the commit of a base; text says why there is none."""
SizeOf = Callable[[Release], "int | Release"]
"""Finds the bytes of a release; the release in another state if there are none."""


def make_plan(
    candidates: Iterable[Release],
    budget: Budget,
    *,
    night: Night,
    now: datetime,
    rate: Rate,
    used: Load,
    base_of: BaseOf | None,
    size_of: SizeOf,
) -> Plan:
    """Plan a night.

    Args:
        candidates: releases that wait.
        budget: limits of the whole night.
        night: how long a release may wait.
        now: the present time.
        rate: what scans are expected to cost.
        used: what earlier runs of this night have used of the budget.
        base_of: finds the base of a release; called only for releases that fit; None: nothing is compared.
        size_of: finds the size of a release whose size the Hub did not list; called in the order of priority, and not after the
            budget of models is used.
    """
    entries: list[Entry] = []
    others: list[Release] = []
    bases: set[str] = set()
    for release in prioritized(candidates, budget.order):
        never = rate.scan(*sizes(release)).exceeds(budget)  # nothing, if the size is not known
        if never:
            reason = (
                f"larger than the budget of a whole night ({', '.join(never)}): raise it, or exclude the repository"
            )
            others.append(_waiting(release, reason, night, now))
            continue
        if (used + Load(models=1)).exceeds(budget):
            others.append(_waiting(release, "the budget of the night is used", night, now))
            continue
        if release.bytes is None and release.parameters is None:
            found = size_of(release)
            if isinstance(found, Release):
                others.append(found)
                continue
            release = replace(release, bytes=found)
            if rate.scan(*sizes(release)).exceeds(budget):
                others.append(_waiting(release, "larger than the budget of a whole night", night, now))
                continue
        size, parameters = sizes(release)
        load = rate.scan(size, parameters)
        over = (used + load).exceeds(budget)
        if over:
            others.append(
                _waiting(release, f"does not fit into what is left of the budget ({', '.join(over)})", night, now)
            )
            continue
        base, note = None, None
        if base_of is not None and release.base_model is not None:
            compared = _compared(release, base_of, rate, load, used, budget, bases)
            if isinstance(compared, str):
                note = compared
            else:
                base, load = compared
                bases.add(base.reference)
        used += load
        entries.append(Entry(release=replace(release, expected_seconds=load.seconds), load=load, base=base, note=note))
    return Plan(entries=tuple(entries), others=tuple(others))


def _compared(
    release: Release, base_of: BaseOf, rate: Rate, load: Load, used: Load, budget: Budget, bases: set[str]
) -> tuple[Base, Load] | str:
    """Return the base and the load with the comparison, or why there is none."""
    assert release.base_model is not None
    base = base_of(release.base_model)
    if isinstance(base, str):
        return base
    if base.reference == release.reference:
        return "it names itself as its base"
    size, parameters = sizes(release)
    load += rate.comparison(size, parameters)
    if not base.scanned and base.reference not in bases:
        # A base has the shapes of its fine-tune, if it can be compared at all.
        load += replace(rate.scan(base.bytes if base.bytes is not None else size, parameters), models=0)
    over = (used + load).exceeds(budget)
    if over:
        return f"the comparison with its base does not fit into the budget ({', '.join(over)})"
    return base, load


def prioritized(candidates: Iterable[Release], order: str) -> list[Release]:
    """Order releases: those of listed repositories, then those that failed before, then the others in the order of the config."""
    return sorted(candidates, key=lambda one: (_rank(one), _place(one, order), one.key))


def _rank(release: Release) -> int:
    return 0 if release.branch is not None else 1 if release.attempts or release.state == "planned" else 2


def _place(release: Release, order: str) -> float:
    time = release.last_modified.timestamp() if release.last_modified is not None else 0.0
    if order == "popular":
        return -float(release.downloads or 0)
    if order == "smallest":
        return float(sizes(release)[0] or float("inf"))
    return time if order == "oldest" else -time


def sizes(release: Release) -> tuple[int, int]:
    """Return the expected bytes and parameters of a release; one follows from the other where the Hub says only one."""
    size, parameters = release.bytes, release.parameters
    if size is None:
        size = (parameters or 0) * _BYTES_PER_PARAMETER
    return size, size // _BYTES_PER_PARAMETER if parameters is None else parameters


def _waiting(release: Release, reason: str, night: Night, now: datetime) -> Release:
    seen = release.first_seen_at or now
    if now - seen > timedelta(days=night.keep_waiting_days):
        return release.now("skipped", f"waited for {night.keep_waiting_days:g} days: {reason}")
    return release.now("waiting", reason)


def superseded(releases: Sequence[Release], known: Iterable[Release]) -> list[Release]:
    """Return the known releases that wait and have a newer commit among `releases`, as skipped."""
    newest = {(one.repository, one.branch or "main"): one.commit for one in reversed(releases)}
    found = []
    for one in known:
        commit = newest.get((one.repository, one.branch or "main"))
        if one.open and commit is not None and commit != one.commit:
            found.append(one.now("skipped", f"a newer commit follows: {commit[:12]}"))
    return found


def share_of(budget: Budget, share: float) -> Budget:
    """Return a part of a budget: at least one model, and what is not limited stays so."""
    return replace(
        budget,
        models=max(1, int(budget.models * share)) if budget.models else 0,
        bytes=max(1, int(budget.bytes * share)) if budget.bytes else 0,
        parameters=max(1, int(budget.parameters * share)) if budget.parameters else 0,
        hours=budget.hours * share,
    )
