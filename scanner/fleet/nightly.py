"""One night: list what is new, plan within the budget, scan, compare with bases, and write the digest."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.retry import may_pass
from scanner.engine.cores import expected_cores
from scanner.engine.report import ModelReport
from scanner.engine.task import Task
from scanner.engine.work import Observer
from scanner.errors import ChangedError, CheckpointError, GatedError, MissingError, ScannerError
from scanner.fleet import listing
from scanner.fleet.backfill import Outdated, outdated_scans, upgrade
from scanner.fleet.config import NightlyConfig
from scanner.fleet.digest import write_digest
from scanner.fleet.plan import Base, Entry, Load, Plan, Rate, make_plan, share_of, sizes, superseded
from scanner.fleet.releases import FailedUpgrade, Ledger, Night, Release, new_night
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
    failed_upgrades: tuple[FailedUpgrade, ...] = ()

    def __repr__(self) -> str:
        return f"NightReport({self.summary})"

    @property
    def nothing(self) -> bool:
        """Whether there was nothing to do."""
        return self.night is None

    @property
    def failed(self) -> int:
        """Number of releases that failed, or of which something failed, and of scans that could not be computed again."""
        return len(self.failed_upgrades) + sum(
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
        parts += [f"{len(self.failed_upgrades)} not upgraded"] if self.failed_upgrades else []
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


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """What a run knows before it works: what the Hub listed, and the plan."""

    night: Night
    continued: bool
    """Whether an earlier run began this night."""
    listed: listing.Listed
    fresh: tuple[Release, ...]
    """Releases that were not known before."""
    gone: tuple[Release, ...]
    """Known releases that are not tried anymore."""
    upgrades: tuple[Outdated, ...]
    upgrade_load: Load
    plan: Plan


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
        self.failed_upgrades: list[FailedUpgrade] = []

    @property
    def store(self) -> Store:
        assert self._store is not None
        return self._store

    # ---- listing and planning

    def plan_only(self) -> NightReport:
        """Return what a night would do."""
        made = self._prepared()
        return NightReport(
            store=self.config.output.store,
            night=made.night,
            planned=made.plan.entries,
            upgrades=made.upgrades,
            releases=tuple(entry.release for entry in made.plan.entries) + made.plan.others + made.gone,
            waiting=sum(one.state == "waiting" for one in made.plan.others),
            problems=made.listed.problems,
            dry_run=True,
            load=made.plan.load + made.upgrade_load,
        )

    def run(self) -> NightReport:
        """Run or continue the night."""
        made = self._prepared()
        night, listed, plan = made.night, made.listed, made.plan
        changed = [*(one for one in made.fresh if not one.open), *made.gone, *self._changed(plan.others)]
        unfinished = made.continued and night.state != "done"
        # The first listing has a watermark to record, whatever it lists: the next one continues there.
        first = listed.watermark is not None and self.ledger.watermark(night.watch_id) is None
        self._close_earlier(night)
        if not (plan.entries or made.upgrades or changed or unfinished or first):
            waiting = sum(one.open for one in self.ledger.releases.values())
            return NightReport(store=self.store.url, night=None, waiting=waiting, problems=listed.problems)
        self.ledger.begin(night)
        night = replace(
            night,
            state="planned",
            watermark=listed.watermark,
            listed=night.listed + listed.count,
            new=night.new + len(made.fresh),
            planned=night.planned + len(plan.entries),
            bytes=night.bytes + plan.load.bytes,
            expected_seconds=night.expected_seconds + plan.load.seconds,
            problems=listed.problems,
            config=self.config.as_json(),
        )
        for release in changed:
            self._set(night, release)
        for entry in plan.entries:
            if not entry.release.attempts:
                self._set(night, entry.release.now("planned"))
        night = self.ledger.write(night)
        self.progress(
            f"night {night.night_id}: {len(made.fresh)} new, {len(plan.entries)} planned "
            f"({shown_bytes(plan.load.bytes)}, {plan.load.seconds / 3600:.2g} hours expected), {night.waiting} waiting"
        )
        if plan.entries or made.upgrades:
            self._work(night, plan, made.upgrades)
        return self._finish(night, plan, made.upgrades, listed.problems)

    def _prepared(self) -> _Prepared:
        """Ask the Hub, and plan."""
        night, continued = self._night()
        listed, fresh = self._listed()
        # Once a night: one whose checkpoint cannot be read anymore would be tried by every run.
        upgrades, load = ([], Load()) if continued and night.state == "done" else self._upgrades(night)
        known = self._known()
        gone = [*superseded(listed.releases, known), *self._changed(known)]
        left = {one.key for one in gone}
        waiting = [
            one
            for one in known
            # Not those that this night has tried.
            if one.key not in left and not (one.attempts and one.night_id == night.night_id and one.state == "waiting")
        ]
        plan = self._plan(night, [*fresh, *waiting], load)
        return _Prepared(
            night=night,
            continued=continued,
            listed=listed,
            fresh=tuple(fresh),
            gone=tuple(gone),
            upgrades=tuple(upgrades),
            upgrade_load=load,
            plan=plan,
        )

    def _close_earlier(self, night: Night) -> None:
        """Write the digests of nights that were interrupted and not continued in time; what they planned is planned again.

        Those of other watches, too: one whose config was edited is never continued.
        """
        assert self.config.output.digests is not None
        length, now = timedelta(hours=self.config.night.length_hours), datetime.now(UTC)
        for other in [one for one in self.ledger.nights if one.state == "planned" and one.night_id != night.night_id]:
            if other.watch_id == night.watch_id or now - other.started_at >= length:
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
        listed = listing.list_releases(watch, since=self._since())
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

    def _since(self) -> datetime | None:
        """Return from when on the Hub is asked; None: as many hours back as the config says.

        A watch that is new may be an earlier one that was edited: the days in which nobody watched are listed, too.
        """
        watch = self.config.watch
        mark = self.ledger.watermark(watch.watch_id)
        if mark is not None:
            return mark
        other = self.ledger.watermark()
        looks_back = timedelta(hours=watch.since_hours)
        return other if other is not None and datetime.now(UTC) - other > looks_back else None

    def _known(self) -> list[Release]:
        """Return what is known of every release; those that an earlier run left planned have one attempt more.

        That run ended without a word, and each of them may be why. Alone, it is (`_work`), and given up after the attempts.
        """
        most = max(2, self.config.night.attempts)  # the first end does not say which of them it was
        found = []
        for release in self.ledger.releases.values():
            attempts = release.attempts + 1
            if release.state != "planned":
                found.append(release)
            elif attempts < most:
                found.append(replace(release, attempts=attempts))
            else:
                reason = f"the run ended {attempts} times while it was at work: killed, out of memory, or a fault of this program"
                found.append(release.now("failed", reason, attempts=attempts))
        return found

    def _changed(self, others: Iterable[Release]) -> Iterator[Release]:
        """Yield those that are new or have another state or reason than before: others need not be written again."""
        for release in others:
            before = self.ledger.releases.get(release.key)
            if before is None or (before.state, before.reason) != (release.state, release.reason):
                yield release

    def _plan(self, night: Night, candidates: Sequence[Release], reserved: Load) -> Plan:
        candidates = [one for one in candidates if one.open]
        if not candidates:
            return Plan()
        return make_plan(
            candidates,
            self.config.budget,
            night=self.config.night,
            now=datetime.now(UTC),
            rate=self._rate,
            used=self._used(night) + reserved,
            base_of=self._base if self.config.compute.compare else None,
            size_of=_size,
        )

    def _used(self, night: Night) -> Load:
        """Return what earlier runs of this night have used of the budget."""
        used = Load()
        for one in self.ledger.releases.values():
            tried = one.state == "waiting" and one.attempts
            if one.night_id == night.night_id and (one.state in ("scanned", "failed") or tried):
                size, parameters = sizes(one)
                used += Load(models=1, bytes=size, parameters=parameters, seconds=one.expected_seconds or 0.0)
        # What its runs really took counts, too, if the estimate was too low.
        return replace(used, seconds=max(used.seconds, night.seconds))

    @cached_property
    def _rate(self) -> Rate:
        workers = self.config.pool.workers or expected_cores(self.config.pool)
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
        budget = share_of(self.config.budget, share)
        failures = Counter(one.scan_id for other in self.ledger.nights for one in other.failed_upgrades)
        # Those that failed come last: they would take the place of others every night.
        for one in sorted(outdated_scans(self._store), key=lambda one: failures[one.scan_id]):
            if not one.reference.startswith("hf://"):
                continue  # files of this machine are not the business of a night
            if failures[one.scan_id] >= self.config.night.attempts:
                continue
            load = self._rate.scan(one.bytes or 2 * one.parameters, one.parameters)
            if not (used + load).exceeds(budget):
                used += load
                chosen.append(one)
        return chosen, used

    # ---- working

    def _set(self, night: Night, release: Release) -> None:
        self.ledger.set(night, release)
        self.touched[release.key] = self.ledger.releases[release.key]

    def _work(self, night: Night, plan: Plan, upgrades: Sequence[Outdated]) -> None:
        """Scan and compare what is planned; a release that was tried before is tried alone, after all others.

        While it is, no other one is planned in the store: if this process ends, the next run knows why.
        """
        from scanner.engine.session import ray_session  # after the plan: Ray and torch take seconds to load

        hours = self.config.budget.hours
        deadline = self.started + hours * 3600 - night.seconds if hours else None
        watcher = _Watcher(self, night, plan, deadline)
        alone = sorted((one for one in plan.entries if one.release.attempts), key=lambda one: one.release.attempts)
        connected = False
        try:
            with ray_session(self.config.pool):
                connected = True
                self._scan(night, [one for one in plan.entries if not one.release.attempts], watcher)
                for entry in alone:
                    self._set(night, entry.release.now("planned"))
                    self.record(night)
                    self._scan(night, [entry], watcher)
                self._upgrade(night, upgrades, watcher)
        except _TimeUpError:
            self.progress("the hours of this night are used up: what is left continues in the next")
        except (KeyboardInterrupt, ScannerError) as error:
            # Other errors may be those of a release: a machine whose memory it exhausts ends Ray, too.
            if isinstance(error, KeyboardInterrupt) or not connected:
                self._put_back(night, plan)
            raise
        for entry in plan.entries:
            if self.ledger.releases[entry.release.key].state == "planned":
                reason = "the hours of the night were used up; finished matrices are kept"
                self._set(night, entry.release.now("waiting", reason))

    def _scan(self, night: Night, entries: Sequence[Entry], watcher: _Watcher) -> None:
        """Scan releases and their bases in one call, and compare them."""
        from scanner.engine.scan import scan

        bases = [entry.base.reference for entry in entries if entry.base is not None and not entry.base.scanned]
        references = list(dict.fromkeys([*bases, *(entry.release.reference for entry in entries)]))
        if not references:
            return
        shared: dict[str, Any] = {
            "store": self.store.url,
            "method": self.config.method,
            "ensembles": self.config.compute.ensembles,
            "pool": self.config.pool,
            "observer": watcher,
        }
        scan(references, **shared)
        for entry in entries:
            watcher.check()
            self._compare(night, entry, watcher.reports, shared)

    def _upgrade(self, night: Night, upgrades: Sequence[Outdated], watcher: _Watcher) -> None:
        """Compute scans of an earlier method again. Until they are, they count as failed: one of them may end this process."""
        if not upgrades:
            return
        watcher.check()
        watcher.reports.clear()
        self.failed_upgrades = [_failed_upgrade(one, "the run ended while it was computed again") for one in upgrades]
        self.record(night)

        def judge() -> None:
            ended = [(one, report) for one in upgrades if (report := watcher.reports.get(one.reference)) is not None]
            self.failed_upgrades = [_failed_upgrade(one, report.error) for one, report in ended if report.error]
            self.upgraded = len(ended) - len(self.failed_upgrades)

        try:
            upgrade(
                self.store,
                upgrades,
                ensembles=self.config.compute.ensembles,
                pool=self.config.pool,
                observer=watcher,
            )
        except (_TimeUpError, KeyboardInterrupt):
            judge()
            raise
        judge()

    def _put_back(self, night: Night, plan: Plan) -> None:
        """Record that this run was interrupted, or found no Ray, which no release is to blame for."""
        for entry in plan.entries:
            release = entry.release
            if self.ledger.releases[release.key].state == "planned":
                if release.attempts:  # the next run counts one more
                    self._set(night, release.now("planned", attempts=release.attempts - 1))
                else:
                    self._set(night, release.now("waiting", "the run was interrupted; finished matrices are kept"))
        with suppress(ScannerError):
            self.record(night)

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
        release = replace(release, scan_id=report.scan_id, matrices=report.analyzed, failed_tensors=report.failed)
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
            report = compare(entry.base.reference, release.reference, **shared)
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
        self.ledger.write(self._so_far(night))

    def _so_far(self, night: Night) -> Night:
        """Return the night with what this run has used and could not do: a run that is killed has used it, too."""
        failed = {one.scan_id: one for one in (*night.failed_upgrades, *self.failed_upgrades)}
        seconds = night.seconds + time.monotonic() - self.started
        return replace(night, seconds=seconds, failed_upgrades=tuple(failed.values()))

    def _finish(self, night: Night, plan: Plan, upgrades: Sequence[Outdated], problems: tuple[str, ...]) -> NightReport:
        self.check()
        night = self._so_far(night)
        night = replace(night, finished_at=datetime.now(UTC), upgraded=night.upgraded + self.upgraded)
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
            failed_upgrades=tuple(self.failed_upgrades),
        )


class _Watcher(Observer):
    """Passes the progress of scans on, records results, and ends the run when the night is over or the lease is lost."""

    def __init__(self, run: _Run, night: Night, plan: Plan, deadline: float | None) -> None:
        self._run, self._night, self._deadline = run, night, deadline
        self._entries = {entry.release.reference: entry for entry in plan.entries}
        self.reports: dict[str, ModelReport] = {}
        self._recorded = time.monotonic()
        for name in vars(Observer):  # everything else is passed on as it is
            if not name.startswith("_") and name not in vars(_Watcher):
                setattr(self, name, getattr(run.observer, name))

    def task_done(self, task: Task, *, failed: list[str]) -> None:
        """Pass it on; end the run if the time is up."""
        self._run.observer.task_done(task, failed=failed)
        self.check()
        self._record()

    def check(self) -> None:
        """End the run if the time is up, or if another one has taken over."""
        self._run.check()
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise _TimeUpError

    def _record(self) -> None:
        if time.monotonic() - self._recorded > _RECORD_SECONDS:
            self._recorded = time.monotonic()
            self._run.record(self._night)

    def model_done(self, model: ModelReport) -> None:
        """Keep the result of a release, and record it now and then."""
        self._run.observer.model_done(model)
        self.reports[model.reference] = model
        entry = self._entries.get(model.reference)
        if entry is None or self._run.ledger.releases[entry.release.key].state != "planned":
            return
        self._run.outcome(self._night, entry, model)
        self._record()


def _failed_upgrade(one: Outdated, reason: object) -> FailedUpgrade:
    repository, _, commit = one.reference.removeprefix("hf://").partition("@")
    return FailedUpgrade(scan_id=one.scan_id, repository=repository, commit=commit, reason=str(reason))


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
