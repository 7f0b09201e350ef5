"""Heartbeats: work that is running, as other processes and machines see it in the store."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from scanner.store.files import StoreFiles

FOLDER = "running"
STALLED = timedelta(minutes=2)
"""Work without a heartbeat for this long was killed, or hangs, or its machine is gone."""
PATIENCE = 3.0
"""Seconds for which a store that is gone or busy is asked again: the next heartbeat follows soon."""
EXPIRED = timedelta(days=1)
"""A heartbeat of this age is removed by the next run."""

_SUFFIX = ".json"
_ID = re.compile(r"[0-9a-f]{32}")
_MOST_BYTES = 1 << 20
_MOST_TEXT = 4096


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The state of one run, written now and then while it lasts."""

    run_id: str
    """32 random hexadecimal digits."""
    kind: str
    """scan, compare, or the kind of an experiment."""
    what: tuple[str, ...]
    """Names of the models."""
    host: str
    pid: int
    started_at: datetime
    updated_at: datetime
    done: int
    """Finished items, those that failed included."""
    total: int
    cost_done: float
    """Cost of the finished items, in the unit of `cost`."""
    cost: float
    failed: int
    workers: int
    wanted_workers: int
    stages: Mapping[str, float] = field(default_factory=dict)
    """Seconds of all workers by stage: read, decompose, test; and of the driver: write."""
    bytes_read: int = 0

    @property
    def stalled(self) -> bool:
        """Whether the last heartbeat is too old."""
        return datetime.now(UTC) - self.updated_at > STALLED


def write(files: StoreFiles, heartbeat: Heartbeat) -> None:
    """Replace the heartbeat of a run.

    Raises:
        StoreError: the store is full or cannot be written.
    """
    times = {name: getattr(heartbeat, name).isoformat() for name in ("started_at", "updated_at")}
    text = json.dumps(asdict(heartbeat) | {"stages": dict(heartbeat.stages)} | times)
    files.write_bytes(f"{FOLDER}/{heartbeat.run_id}{_SUFFIX}", text.encode(), lasting=False)


def remove(files: StoreFiles, run_id: str) -> None:
    """Remove the heartbeat of a run that ends.

    Raises:
        StoreError: the store cannot be written.
    """
    files.remove(f"{FOLDER}/{run_id}{_SUFFIX}")


def read_all(files: StoreFiles) -> list[Heartbeat]:
    """Return the heartbeats in a store, the oldest run first; files that are not heartbeats are ignored.

    Raises:
        StoreError: the store cannot be read.
    """
    names = [name for name in files.names(FOLDER, _SUFFIX) if _ID.fullmatch(name)]
    found = [parse(name, files.read_bytes(f"{FOLDER}/{name}{_SUFFIX}")) for name in names]
    return sorted((one for one in found if one is not None), key=lambda one: (one.started_at, one.run_id))


def remove_expired(files: StoreFiles) -> None:
    """Remove the heartbeats that runs which were killed left behind.

    Raises:
        StoreError: the store cannot be read or written.
    """
    now = datetime.now(UTC)
    for heartbeat in read_all(files):
        if now - heartbeat.updated_at > EXPIRED:
            remove(files, heartbeat.run_id)


def parse(run_id: str, content: bytes | None) -> Heartbeat | None:
    """Read one heartbeat. Anybody may have written it: None for content of any other kind."""
    if content is None or len(content) > _MOST_BYTES:
        return None
    try:
        values = json.loads(content)
        if not isinstance(values, dict) or not {*_CHECKS} <= {*values} or values["run_id"] != run_id:
            return None
        checked: dict[str, Any] = {name: check(values[name]) for name, check in _CHECKS.items()}
        return Heartbeat(**checked)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MOST_TEXT:
        raise ValueError("not a short text")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("not a list")
    return tuple(map(_text, value))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("not a count")
    return value


def _number(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool | str) or not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _time(value: Any) -> datetime:
    found = datetime.fromisoformat(_text(value))
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _stages(value: Any) -> dict[str, float]:
    return {_text(name): _number(seconds) for name, seconds in value.items()}


_CHECKS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("run_id", "kind", "host"), _text),
    "what": _texts,
    **dict.fromkeys(("started_at", "updated_at"), _time),
    **dict.fromkeys(("pid", "done", "total", "failed", "workers", "wanted_workers", "bytes_read"), _count),
    **dict.fromkeys(("cost_done", "cost"), _number),
    "stages": _stages,
}
