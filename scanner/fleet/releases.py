"""Releases and nights: what a nightly scan knows of a commit on the Hub, and reading and writing it in the store."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from scanner.fleet.config import NightlyConfig
from scanner.store import Store
from scanner.store.tables import SCHEMAS, rows
from scanner.version import __version__

State = Literal["waiting", "planned", "scanned", "failed", "skipped"]
"""waiting: for a later night; planned: for this night, or a night that was killed; failed: given up; skipped: never scanned."""

STATES: tuple[State, ...] = get_args(State)
#: A night is a time and random digits.
_NIGHT = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")
_MOST_REASON = 1000


@dataclass(frozen=True, kw_only=True)
class Release:
    """A commit of a model on the Hub; the fields are columns of table `releases`. Names are as the Hub gave them: untrusted."""

    repository: str
    commit: str
    state: State = "waiting"
    reason: str | None = None
    attempts: int = 0
    branch: str | None = None
    night_id: str = ""
    watch_id: str = ""
    first_seen_at: datetime | None = None
    updated_at: datetime | None = None
    last_modified: datetime | None = None
    parameters: int | None = None
    bytes: int | None = None
    expected_seconds: float | None = None
    task: str | None = None
    library: str | None = None
    license: str | None = None
    gated: str | None = None
    downloads: int | None = None
    base_model: str | None = None
    base_commit: str | None = None
    scan_id: str | None = None
    pair_id: str | None = None
    matrices: int | None = None
    failed_tensors: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What identifies a release."""
        return self.repository, self.commit

    @property
    def reference(self) -> str:
        """The reference that opens exactly this commit."""
        return f"hf://{self.repository}@{self.commit}"

    @property
    def open(self) -> bool:
        """Whether there is something to do."""
        return self.state in ("waiting", "planned")

    def now(self, state: State, reason: str | None = None, **changed: Any) -> Release:
        """Return the release in another state."""
        reason = None if reason is None else reason[:_MOST_REASON]
        return replace(self, state=state, reason=reason, **changed)


@dataclass(frozen=True, kw_only=True)
class FailedUpgrade:
    """A scan of an earlier method that a night could not compute again."""

    scan_id: str
    repository: str
    commit: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Night:
    """One night; the fields are columns of table `nights`."""

    night_id: str
    watch_id: str
    state: Literal["planned", "done"] = "planned"
    started_at: datetime
    finished_at: datetime | None = None
    watermark: datetime | None = None
    listed: int = 0
    new: int = 0
    planned: int = 0
    scanned: int = 0
    failed: int = 0
    skipped: int = 0
    waiting: int = 0
    upgraded: int = 0
    bytes: int = 0
    expected_seconds: float = 0.0
    seconds: float = 0.0
    problems: tuple[str, ...] = ()
    failed_upgrades: tuple[FailedUpgrade, ...] = ()
    config: str = ""

    @property
    def mark(self) -> datetime | None:
        """The watermark; if it is later than the night, which no change can be that the night has seen, the start of the night."""
        if self.watermark is None or self.watermark <= (self.finished_at or self.started_at):
            return self.watermark
        return self.started_at


@dataclass(kw_only=True)
class Ledger:
    """Everything that is known of releases and nights, and what this night changes; `write` makes it last."""

    store: Store
    releases: dict[tuple[str, str], Release] = field(default_factory=dict)
    """The newest state of every release."""
    nights: list[Night] = field(default_factory=list)
    """All nights, the newest first."""
    changed: dict[tuple[str, str], Release] = field(default_factory=dict)
    """The releases whose state changed in the night that is written."""

    @classmethod
    def read(cls, store: Store) -> Ledger:
        """Read what is known.

        Raises:
            StoreError: the store cannot be read.
        """
        known: dict[tuple[str, str], Release] = {}
        for row in store.query("releases").to_pylist():
            release = _release(row)
            if release is not None:
                known[release.key] = release
        nights = [night for row in store.query("nights").to_pylist() if (night := _night(row)) is not None]
        return cls(store=store, releases=known, nights=nights)

    def newest(self, watch_id: str) -> Night | None:
        """Return the newest night in which this was watched."""
        return next((night for night in self.nights if night.watch_id == watch_id), None)

    def watermark(self, watch_id: str | None = None) -> datetime | None:
        """Return the newest change on the Hub that is recorded of what is watched; None: of anything that is watched."""
        nights = (night for night in self.nights if watch_id in (None, night.watch_id))
        return max((night.mark for night in nights if night.mark), default=None)

    def begin(self, night: Night) -> None:
        """Write into this night from now on; what it already changed stays in its file."""
        self.changed = {key: one for key, one in self.releases.items() if one.night_id == night.night_id}

    def set(self, night: Night, release: Release) -> None:
        """Change the state of a release in a night."""
        now = datetime.now(UTC)
        changed = replace(
            release,
            night_id=night.night_id,
            watch_id=release.watch_id or night.watch_id,
            first_seen_at=release.first_seen_at or now,
            updated_at=now,
        )
        self.releases[changed.key] = self.changed[changed.key] = changed

    def write(self, night: Night) -> Night:
        """Write the releases of a night, then the night: its watermark never speaks of what is not recorded.

        Returns:
            The night as it was written, with its counts.

        Raises:
            StoreError: the store is full or cannot be written.
        """
        counted: dict[str, int] = {}
        for release in self.changed.values():
            tried_again = release.state == "waiting" and release.attempts > 0
            state = "failed" if tried_again else release.state
            counted[state] = counted.get(state, 0) + 1
        night = replace(
            night,
            scanned=counted.get("scanned", 0),
            failed=counted.get("failed", 0),
            skipped=counted.get("skipped", 0),
            waiting=sum(one.state == "waiting" for one in self.releases.values()),
        )
        if self.changed:
            ordered = [self.changed[key] for key in sorted(self.changed)]
            columns = {name: [getattr(one, name) for one in ordered] for name in SCHEMAS["releases"].names}
            self.store.write_rows("releases", night.night_id, _typed("releases", columns, len(ordered)), method={})
        self.write_night(night)
        return night

    def write_night(self, night: Night) -> None:
        """Write the row of a night as it is.

        Raises:
            StoreError: the store is full or cannot be written.
        """
        one = {name: getattr(night, name) for name in SCHEMAS["nights"].names if hasattr(night, name)}
        one |= {"problems": json.dumps(list(night.problems)), "scanner_version": __version__}
        one["failed_upgrades"] = json.dumps([asdict(failed) for failed in night.failed_upgrades])
        self.store.write_rows("nights", night.night_id, rows("nights", one, 1), method={})
        self.nights = [night, *(other for other in self.nights if other.night_id != night.night_id)]


def new_night(config: NightlyConfig) -> Night:
    """Return a night that begins now."""
    now = datetime.now(UTC)
    night_id = f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:4]}"
    return Night(night_id=night_id, watch_id=config.watch.watch_id, started_at=now, config=config.as_json())


def is_night(text: object) -> bool:
    """Whether a value is the id of a night, which becomes the name of files."""
    return isinstance(text, str) and _NIGHT.fullmatch(text) is not None


def counts(releases: Iterable[Release]) -> dict[State, int]:
    """Return the number of releases by state."""
    found: dict[State, int] = dict.fromkeys(STATES, 0)
    for release in releases:
        found[release.state] += 1
    return found


def _typed(table: str, columns: Mapping[str, list[Any]], length: int) -> Any:
    import pyarrow as pa

    schema = SCHEMAS[table]
    arrays = {name: pa.array(values, schema.field(name).type) for name, values in columns.items()}
    return rows(table, arrays, length)


def _release(row: Mapping[str, Any]) -> Release | None:
    """Read a row; None if it is not one that we wrote: a store may come from anybody."""
    if row["state"] not in STATES or not is_night(row["night_id"]):
        return None
    return Release(**{one.name: row[one.name] for one in fields(Release)})


def _night(row: Mapping[str, Any]) -> Night | None:
    if row["state"] not in ("planned", "done") or not is_night(row["night_id"]) or row["started_at"] is None:
        return None
    values = {one.name: row[one.name] for one in fields(Night) if row[one.name] is not None}
    problems = tuple(map(str, _list_in(row["problems"])))
    return Night(**values | {"problems": problems, "failed_upgrades": failed_upgrades(row["failed_upgrades"])})


def failed_upgrades(text: str | None) -> tuple[FailedUpgrade, ...]:
    """Read the column `failed_upgrades` of `nights`; what we did not write is left out."""
    names = [one.name for one in fields(FailedUpgrade)]
    return tuple(
        FailedUpgrade(**{name: str(one[name]) for name in names})
        for one in _list_in(text)
        if isinstance(one, dict) and {*names} <= {*one}
    )


def _list_in(text: str | None) -> list[Any]:
    try:
        found = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []
