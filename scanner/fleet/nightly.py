"""One night: list what is new, plan within the budget, scan, compare with bases, and write the digest."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.retry import may_pass
from scanner.engine.scan import ModelReport
from scanner.engine.task import Task
from scanner.engine.work import Observer
from scanner.errors import ChangedError, CheckpointError, GatedError, MissingError, ScannerError
from scanner.fleet import listing
from scanner.fleet.backfill import Outdated, outdated_scans, upgrade
from scanner.fleet.config import NightlyConfig
from scanner.fleet.digest import write_digest
from scanner.fleet.plan import Base, Entry, Load, Plan, Rate, make_plan, share_of, sizes, superseded
from scanner.fleet.releases import Ledger, Night, Release, new_night
from scanner.store import Store, open_store
from scanner.store.files import StoreFiles
from scanner.store.lease import Lease, lease
from scanner.store.references import scans_of
from scanner.store.tables import json_object

#: Seconds between two records of what is done while a night runs: after a crash, the store knows the rest from its scans.
_RECORD_SECONDS = 30.0
#: Scans that have to be in the store before their times are believed more than the built-in estimate.
_ENOUGH_SCANS = 3


class _TimeUpError(Exception):
    """The hours of the night are used up."""


@dataclass(frozen=True, kw_only=True)
class NightReport:
    """Result of one run."""

    store: str
    night: Night | None
    """None if there was nothing to do."""
    planned: tuple[Entry, ...] = ()
    """What was planned in this run."""
    upgrades: tuple[Outdated, ...] = ()
    releases: tuple[Release, ...] = ()
    """What this run was about: every release that it changed, in its new state."""
    waiting: int = 0
    problems: tuple[str, ...] = ()
    digest: str | None = None
    """Where the digest is."""
    dry_run: bool = False
    load: Load = field(default_factory=Load)
    upgraded: int = 0

    @property
    def nothing(self) -> bool:
        """Whether there was nothing to do."""
        return self.night is None

    @property
    def failed(self) -> int:
        """Number of releases that failed, or of which something failed."""
        return sum(
            bool(one.state == "failed" or (one.attempts and one.state == "waiting") or one.failed_tensors)
            for one in self.releases
        )

    @property
    def exit_status(self) -> int:
        """0: done, or nothing to do; 3: something failed."""
        return 3 if self.problems or self.failed else 0

    @property
    def summary(self) -> str:
        """One line for the mail of cron."""
        if self.nothing:
            return f"nothing to do: no new release, {self.waiting} waiting"
        if self.dry_run:
            return (
                f"{len(self.planned)} releases and {len(self.upgrades)} upgrades planned: {shown_bytes(self.load.bytes)}, "
                f"{self.load.seconds / 3600:.2g} hours expected; {self.waiting} waiting"
            )
        counts = {state: sum(one.state == state for one in self.releases) for state in ("scanned", "failed", "skipped")}
        again = sum(one.state == "waiting" and bool(one.attempts) for one in self.releases)
        parts = [f"{counts['scanned']} scanned", f"{counts['failed']} failed", f"{again} to try again"]
        parts += [f"{counts['skipped']} skipped", f"{self.waiting} waiting"]
        parts += [f"{self.upgraded} upgraded"] if self.upgraded else []
        return ", ".join(parts)


def shown_bytes(number: float) -> str:
    """Return a number of bytes with a unit, as in `1.2 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} bytes" if unit == "bytes" else f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def run_night(
    config: NightlyConfig,
    *,
    observer: Observer | None = None,
    dry_run: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> NightReport:
    """Run or continue a night: scan what is new on the Hub and fits into the budget, and write the digest.

    Args:
        config: what to watch, the budget, and where results go.
        observer: receives the progress of the scans.
        dry_run: only plan; nothing is written.
        progress: called with a line about each step.

    Raises:
        LeaseHeldError: another process runs a night in this store.
        CheckpointError: the Hub could not be asked; the watermark stays where it was.
        ScannerError: nothing can continue: a store that cannot be written, no worker, no cluster.
        KeyboardInterrupt: interrupted; the same call continues.
    """
    url = os.fspath(config.output.store)
    if dry_run:
        store = open_store(url) if StoreFiles(url).is_folder("scans") else None
        return _Run(config, store, None, observer or Observer(), progress).plan_only()
    store = open_store(url, create=True)
    length = timedelta(minutes=config.night.lease_minutes)
    with lease(store.files, "nightly", doing="scanned for the night", length=length) as held:
        return _Run(config, store, held, observer or Observer(), progress).run()


class _Run:
    """One run of one night."""

    def __init__(
        self,
        config: NightlyConfig,
        store: Store | None,
        held: Lease | None,
        observer: Observer,
        progress: Callable[[str], None],
    ) -> None:
        self.config, self._store, self._held = config, store, held
        self.observer, self.progress = observer, progress
        self.started = time.monotonic()
        self.ledger = Ledger.read(store) if store is not None else Ledger(store=_NO_STORE)
        self.touched: dict[tuple[str, str], Release] = {}
        self.bases: dict[str, Base | str] = {}
        self.upgraded = 0

    @property
    def store(self) -> Store:
        assert self._store is not None
        return self._store

    # ---- listing and planning

    def plan_only(self) -> NightReport:
        """Return what a night would do."""
        night, _ = self._night()
        listed, fresh = self._listed()
        upgrades, upgrade_load = self._upgrades(night)
        plan = self._plan(night, [*fresh, *self._known(night, fresh)], upgrade_load)
        releases = tuple(entry.release for entry in plan.entries) + plan.others
        return NightReport(
            store=self.config.output.store,
            night=night,
            planned=plan.entries,
            upgrades=tuple(upgrades),
            releases=releases,
            waiting=sum(one.state == "waiting" for one in plan.others),
            problems=listed.problems,
            dry_run=True,
            load=plan.load + upgrade_load,
        )

    def run(self) -> NightReport:
        """Run or continue the night."""
        night, continued = self._night()
        listed, fresh = self._listed()
        # Once a night: one whose checkpoint cannot be read anymore would be tried by every run.
        upgrades, upgrade_load = ([], Load()) if continued and night.state == "done" else self._upgrades(night)
        gone = superseded(listed.releases, self.ledger.releases.values())
        left = {one.key for one in gone}
        known = [one for one in self._known(night, fresh) if one.key not in left]
        plan = self._plan(night, [*(one for one in fresh if one.open), *known], upgrade_load)
        changed = [*(one for one in fresh if not one.open), *gone, *self._changed(plan.others)]
        unfinished = continued and night.state != "done"
        if not (plan.entries or upgrades or changed or unfinished):
            waiting = sum(one.open for one in self.ledger.releases.values())
            return NightReport(store=self.store.url, night=None, waiting=waiting, problems=listed.problems)
        self._close_earlier(night)
        self.ledger.begin(night)
        night = replace(
            night,
            state="planned",
            watermark=listed.watermark,
            listed=night.listed + listed.count,
            new=night.new + len(fresh),
            planned=night.planned + len(plan.entries),
            bytes=night.bytes + plan.load.bytes,
            expected_seconds=night.expected_seconds + plan.load.seconds,
            problems=listed.problems,
            config=self.config.as_json(),
        )
        for release in changed:
            self._set(night, release)
        for entry in plan.entries:
            self._set(night, entry.release.now("planned"))
        night = self.ledger.write(night)
        self.progress(
            f"night {night.night_id}: {len(fresh)} new, {len(plan.entries)} planned "
            f"({shown_bytes(plan.load.bytes)}, {plan.load.seconds / 3600:.2g} hours expected), {night.waiting} waiting"
        )
        if plan.entries or upgrades:
            self._work(night, plan, upgrades)
        return self._finish(night, plan, upgrades, listed.problems)

    def _close_earlier(self, night: Night) -> None:
        """Write the digest of a night that was interrupted and not continued in time; what it planned is planned again."""
        assert self.config.output.digests is not None
        for other in [one for one in self.ledger.nights if one.watch_id == night.watch_id and one.state == "planned"]:
            if other.night_id != night.night_id:
                write_digest(self.store, other.night_id, self.config.output.digests)
                self.ledger.write_night(replace(other, state="done"))

    def _night(self) -> tuple[Night, bool]:
        """Return the night that this run belongs to, and whether it is one that was begun before."""
        last = self.ledger.newest(self.config.watch.watch_id)
        length = timedelta(hours=self.config.night.length_hours)
        if last is not None and datetime.now(UTC) - last.started_at < length:
            return last, True
        return new_night(self.config), False

    def _listed(self) -> tuple[listing.Listed, list[Release]]:
        """Ask the Hub, and return what is not known yet; a commit that was scanned under another name is skipped."""
        watch = self.config.watch
        self.progress("asking the Hub for new releases")
        listed = listing.list_releases(watch, since=self.ledger.watermark(watch.watch_id))
        scanned = {one.commit: one for one in self.ledger.releases.values() if one.state == "scanned"}
        fresh: list[Release] = []
        newest: set[tuple[str, str]] = set()
        for release in listed.releases:
            place = (release.repository, release.branch or "main")
            if release.key in self.ledger.releases:
                newest.add(place)
                continue
            renamed = scanned.get(release.commit)
            if renamed is not None:
                reason = f"the same commit was scanned as {printable(renamed.repository)}"
                release = release.now("skipped", reason, scan_id=renamed.scan_id)
            elif place in newest:  # it changed while the pages were listed
                release = release.now("skipped", "a newer commit follows")
            newest.add(place)
            fresh.append(release)
        return listed, fresh

    def _known(self, night: Night, fresh: list[Release]) -> list[Release]:
        """Return the releases that wait, without those that this night has tried."""
        return [
            one
            for one in self.ledger.releases.values()
            if one.open and not (one.attempts and one.night_id == night.night_id and one.state == "waiting")
        ]

    def _changed(self, others: tuple[Release, ...]) -> Iterator[Release]:
        """Yield those that are new or have another state or reason than before: others need not be written again."""
        for release in others:
            before = self.ledger.releases.get(release.key)
            if before is None or (before.state, before.reason) != (release.state, release.reason):
                yield release

    def _plan(self, night: Night, candidates: list[Release], reserved: Load) -> Plan:
        return make_plan(
            [one for one in candidates if one.open],
            self.config.budget,
            night=self.config.night,
            now=datetime.now(UTC),
            rate=self._rate(),
            used=self._used(night) + reserved,
            base_of=self._base if self.config.compute.compare else None,
            size_of=_size,
        )

    def _used(self, night: Night) -> Load:
        """Return what earlier runs of this night have used of the budget."""
        used = Load()
        for one in self.ledger.releases.values():
            if one.night_id == night.night_id and (one.state in ("scanned", "failed") or one.attempts):
                size, parameters = sizes(one)
                used += Load(models=1, bytes=size, parameters=parameters, seconds=one.expected_seconds or 0.0)
        # What its runs really took counts, too, if the estimate was too low.
        return replace(used, seconds=max(used.seconds, night.seconds))

    def _rate(self) -> Rate:
        workers = self.config.pool.workers or os.cpu_count() or 1
        if self._store is None:
            return Rate(workers=workers)
        for row in self._store.query("scan_rate").to_pylist():
            if row["scans"] >= _ENOUGH_SCANS:
                return Rate(seconds_per_work=row["seconds_per_work"], workers=workers)
        return Rate(workers=workers)

    def _base(self, repository: str) -> Base | str:
        """Find the commit of a base: the newest that was scanned with this method, otherwise that of its main branch."""
        if repository not in self.bases:
            self.bases[repository] = self._found_base(repository)
        return self.bases[repository]

    def _found_base(self, repository: str) -> Base | str:
        method = self.config.method.as_dict()
        for scan in scans_of(self._store, repository) if self._store is not None else ():
            name, at, commit = str(scan["source"] or "").removeprefix("hf://").partition("@")
            if name == repository and at and json_object(scan["method"]) == method:
                return Base(repository=repository, commit=commit, scanned=True)
        try:
            name, commit, size = listing.pinned(repository)
        except CheckpointError as error:
            return f"its base cannot be read: {error}"
        return Base(repository=name, commit=commit, scanned=False, bytes=size)

    def _upgrades(self, night: Night) -> tuple[list[Outdated], Load]:
        """Return the scans of an earlier method that fit into their share of the budget; differences follow their sides."""
        share, chosen, used = self.config.budget.upgrade_share, [], Load(models=night.upgraded)
        if self._store is None or not share:
            return [], Load()
        budget, rate = share_of(self.config.budget, share), self._rate()
        for one in outdated_scans(self._store):
            if not one.reference.startswith("hf://"):
                continue  # files of this machine are not the business of a night
            load = rate.scan(one.bytes or 2 * one.parameters, one.parameters)
            if not (used + load).exceeds(budget):
                used += load
                chosen.append(one)
        return chosen, used

    # ---- working

    def _set(self, night: Night, release: Release) -> None:
        self.ledger.set(night, release)
        self.touched[release.key] = self.ledger.releases[release.key]

    def _work(self, night: Night, plan: Plan, upgrades: list[Outdated]) -> None:
        """Scan and compare what is planned."""
        from scanner.engine import scan as scan_module  # after the plan: Ray and torch take seconds to load
        from scanner.engine.session import ray_session

        config = self.config
        hours = config.budget.hours
        deadline = self.started + hours * 3600 - night.seconds if hours else None
        watcher = _Watcher(self, night, plan, deadline)
        shared: dict[str, Any] = {
            "store": self.store.url,
            "ensembles": config.compute.ensembles,
            "pool": config.pool,
            "observer": watcher,
        }
        try:
            with ExitStack() as stack:
                references = self._references(plan)
                if references:
                    stack.enter_context(ray_session(config.pool))
                    scan_module.scan(references, method=config.method, **shared)
                    for entry in plan.entries:
                        self._compare(night, entry, watcher.reports, shared)
                        self.check()
                if upgrades:
                    stack.enter_context(ray_session(config.pool))
                    upgrade(
                        self.store, upgrades, ensembles=config.compute.ensembles, pool=config.pool, observer=watcher
                    )
        except _TimeUpError:
            self.progress("the hours of this night are used up: what is left continues in the next")
        done = {reference for reference, report in watcher.reports.items() if report.error is None}
        self.upgraded = sum(one.reference in done for one in upgrades)
        for entry in plan.entries:
            if self.ledger.releases[entry.release.key].state == "planned":
                reason = "the hours of the night were used up; finished matrices are kept"
                self._set(night, entry.release.now("waiting", reason))

    def _references(self, plan: Plan) -> list[str]:
        bases = [entry.base.reference for entry in plan.entries if entry.base is not None and not entry.base.scanned]
        return list(dict.fromkeys([*bases, *(entry.release.reference for entry in plan.entries)]))

    def check(self) -> None:
        """Make sure that this process may go on writing."""
        if self._held is not None:
            self._held.check()

    def outcome(self, night: Night, entry: Entry, report: ModelReport) -> None:
        """Record the result of a scan; a release that is compared stays planned until that is done, too."""
        release = entry.release
        if report.error is not None:
            self._set(night, self._failed(release, report.error))
            return
        release = replace(release, scan_id=report.scan_id, matrices=report.analysed, failed_tensors=report.failed)
        if report.failed and self._may_pass(report.scan_id) and release.attempts + 1 < self.config.night.attempts:
            reason = f"{report.failed} tensors could not be read; they are tried again"
            self._set(night, release.now("waiting", reason, attempts=release.attempts + 1))
        elif entry.base is not None:
            self._set(night, release.now("planned"))
        else:
            self._set(night, release.now("scanned", entry.note))

    def _may_pass(self, scan_id: str) -> bool:
        return any(row["transient"] for row in self.store.file_rows("failures", scan_id, ["transient"]))

    def _failed(self, release: Release, error: ScannerError) -> Release:
        """Return the release after an error that concerns it alone."""
        if isinstance(error, MissingError):
            return release.now("skipped", f"deleted, renamed or made private: {error}")
        if isinstance(error, GatedError):
            return release.now("skipped", f"gated: {error}")
        attempts = release.attempts + 1
        passing = isinstance(error, ChangedError) or may_pass(error)
        if passing and attempts < self.config.night.attempts:
            return release.now("waiting", f"attempt {attempts} failed, tried again: {error}", attempts=attempts)
        return release.now("failed", str(error), attempts=attempts)

    def _compare(self, night: Night, entry: Entry, reports: Mapping[str, ModelReport], shared: dict[str, Any]) -> None:
        """Compare a release with its base; the release is scanned, whatever comes of it."""
        release = self.ledger.releases[entry.release.key]
        if entry.base is None or release.state != "planned" or release.scan_id is None:
            return
        base = reports.get(entry.base.reference)
        if base is not None and base.error is not None:
            self._set(
                night, release.now("scanned", f"its base {entry.base.repository} cannot be scanned: {base.error}")
            )
            return
        from scanner.engine.compare import compare

        try:
            report = compare(entry.base.reference, release.reference, method=self.config.method, **shared)
        except CheckpointError as error:
            attempts = release.attempts + 1
            if may_pass(error) and attempts < self.config.night.attempts:
                reason = f"the comparison with {entry.base.repository} failed, tried again: {error}"
                self._set(night, release.now("waiting", reason, attempts=attempts))
            else:
                self._set(night, release.now("scanned", f"not compared with {entry.base.repository}: {error}"))
            return
        note = f"{len(report.failed)} matrices could not be compared" if report.failed else None
        self._set(night, release.now("scanned", note, base_commit=entry.base.commit, pair_id=report.pair_id))

    def record(self, night: Night) -> None:
        """Write what is known now."""
        self.check()
        self.ledger.write(night)

    def _finish(self, night: Night, plan: Plan, upgrades: list[Outdated], problems: tuple[str, ...]) -> NightReport:
        self.check()
        seconds = night.seconds + time.monotonic() - self.started
        night = replace(night, finished_at=datetime.now(UTC), seconds=seconds, upgraded=night.upgraded + self.upgraded)
        night = self.ledger.write(night)
        assert self.config.output.digests is not None
        self.progress("writing the digest")
        where = write_digest(self.store, night.night_id, self.config.output.digests)
        night = self.ledger.write(replace(night, state="done"))
        return NightReport(
            store=self.store.url,
            night=night,
            planned=plan.entries,
            upgrades=tuple(upgrades),
            releases=tuple(self.touched.values()),
            waiting=night.waiting,
            problems=problems,
            digest=where,
            load=plan.load,
            upgraded=self.upgraded,
        )


class _Watcher(Observer):
    """Passes the progress of scans on, records results, and ends the run when the night is over or the lease is lost."""

    def __init__(self, run: _Run, night: Night, plan: Plan, deadline: float | None) -> None:
        self._run, self._night, self._deadline = run, night, deadline
        self._entries = {entry.release.reference: entry for entry in plan.entries}
        self.reports: dict[str, ModelReport] = {}
        self._recorded = time.monotonic()
        told = run.observer
        for name in ("opening", "damaged", "starting", "workers", "waiting", "hung", "dispatching"):
            setattr(self, name, getattr(told, name))

    def task_done(self, task: Task, *, failed: list[str]) -> None:
        """Pass it on; end the run if the time is up."""
        self._run.observer.task_done(task, failed=failed)
        self._run.check()
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise _TimeUpError

    def model_done(self, model: ModelReport) -> None:
        """Keep the result of a release, and record it now and then."""
        self._run.observer.model_done(model)
        self.reports[model.reference] = model
        entry = self._entries.get(model.reference)
        if entry is None or self._run.ledger.releases[entry.release.key].state != "planned":
            return
        self._run.outcome(self._night, entry, model)
        if time.monotonic() - self._recorded > _RECORD_SECONDS:
            self._recorded = time.monotonic()
            self._run.record(self._night)


def _size(release: Release) -> int | Release:
    """Return the bytes of the weights of a release that the Hub did not list with a size."""
    try:
        found = listing.size_of(release)
    except (MissingError, GatedError) as error:
        return release.now("skipped", str(error))
    except CheckpointError as error:
        return release.now("waiting", f"its size could not be looked up: {error}")
    if found is None:
        return release.now("skipped", "it has no file with weights")
    return found


#: A ledger of a store that does not exist is read and never written.
_NO_STORE: Any = None
