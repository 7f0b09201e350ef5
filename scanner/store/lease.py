"""A lease in a store: one process at a time does a kind of work there; a lease that is not renewed expires.

Whether it was renewed is judged by the clock of the store, which wrote its file: the clocks of two machines may differ by more than
the length of a lease. Where the store does not tell when a file was written, the clocks of the machines have to agree.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scanner.errors import StoreError
from scanner.store.checksums import printable
from scanner.store.files import StoreFiles

LENGTH = timedelta(minutes=10)
"""After this time, others may take over from a process that was killed, or whose machine is gone."""

_MOST_BYTES = 1 << 16
#: Seconds for which a process that is interrupted waits until the lease is given back; then it ends, and the lease expires.
_HURRY = 2.0


class LeaseHeldError(StoreError):
    """Another process has the lease."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who has a lease, and until when."""

    owner: str
    """32 random hexadecimal digits."""
    doing: str
    """What is done under the lease, as in "compacted"."""
    host: str
    pid: int
    space: str
    """Where the process id means something."""
    since: str
    """ISO 8601, UTC."""
    until: str
    """ISO 8601, UTC, by the clock of the holder; later than now while it runs."""
    seconds: float = LENGTH.total_seconds()
    """Length of the lease: it expires if it is not renewed for so long."""

    def content(self) -> bytes:
        """Return the content of the file."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @property
    def expired(self) -> bool:
        """Whether the lease was not renewed, by the clock of this machine."""
        return datetime.fromisoformat(self.until) < datetime.now(UTC)

    def renewed(self) -> Holder:
        """Return the same holder for the length of the lease from now."""
        return replace(self, until=(datetime.now(UTC) + timedelta(seconds=self.seconds)).isoformat())


class Lease:
    """A lease that this process has, renewed in a thread."""

    def __init__(self, files: StoreFiles, path: str, holder: Holder) -> None:
        self._files, self._path, self._holder = files, path, holder
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._keep, name="rmtscan-lease", daemon=True)

    def check(self) -> None:
        """Check that this process still has the lease; to be called before everything that others must not do at the same time.

        Raises:
            LeaseHeldError: it was not renewed in time, and another process may have taken it.
        """
        if self._lost is None and self._holder.expired:
            # A suspended machine, or a store that was gone: the thread has not run.
            self._renew()
        if self._lost is not None:
            raise LeaseHeldError(
                f"this process has lost {self._files.full(self._path)!r} ({self._lost}): run the same command again"
            )

    def start(self) -> None:
        """Renew the lease from now on."""
        self._thread.start()

    def end(self, *, seconds: float | None = None) -> None:
        """Stop renewing the lease, and give it back; wait for this number of seconds at most, None: as long as it takes."""
        self._ended.set()
        self._thread.join(seconds)

    def _keep(self) -> None:
        """Renew the lease until the end, then give it back."""
        # Three chances before it expires.
        while not self._ended.wait(self._holder.seconds / 4):
            self._renew()
        if self._lost is None:
            with suppress(StoreError), self._lock:  # then it expires
                self._replaced(None)

    def _renew(self) -> None:
        with self._lock:  # after a suspension, the thread and `check` renew it at the same time
            try:
                if not self._replaced(self._holder.renewed()):
                    self._lost = "another process has taken it"
            except StoreError as error:
                if self._holder.expired:
                    self._lost = str(error)

    def _replaced(self, following: Holder | None) -> bool:
        """Write who has the lease from now on; False: another process has taken it."""
        after = None if following is None else following.content()
        replaced = self._files.swap(self._path, self._holder.content(), after)
        if not replaced:
            # An earlier renewal may have been written although its answer was lost.
            content = self._files.read_bytes(self._path)
            found = None if content is None else _parse(content)
            if content is None or found is None or found.owner != self._holder.owner:
                return False
            self._holder = found
            replaced = self._files.swap(self._path, content, after)
        if replaced and following is not None:
            self._holder = following
        return replaced


@contextmanager
def lease(files: StoreFiles, name: str, *, doing: str, length: timedelta = LENGTH) -> Iterator[Lease]:
    """Have a lease in a store until the block ends.

    Args:
        files: the store.
        name: of the lease; its file is `leases/<name>.json`.
        doing: what the block does with the store, as in "compacted", for the error of other processes.
        length: time after which others may take over from a holder that was killed; it is renewed four times as often.

    Raises:
        LeaseHeldError: another process has it.
        StoreError: the store cannot be read or written.
    """
    found = _take(files, f"leases/{name}.json", doing, length)
    found.start()
    try:
        yield found
    except BaseException:
        found.end(seconds=_HURRY)  # a store that is gone does not keep an interrupted process
        raise
    found.end()


def _take(files: StoreFiles, path: str, doing: str, length: timedelta) -> Lease:
    now = datetime.now(UTC).isoformat()
    own = Holder(
        owner=uuid.uuid4().hex,
        doing=doing,
        host=socket.gethostname(),
        pid=os.getpid(),
        space=_space(),
        since=now,
        until=now,
        seconds=length.total_seconds(),
    ).renewed()
    if files.create(path, own.content()):
        return Lease(files, path, own)
    content = files.read_bytes(path)
    if content is None:  # its holder has just ended
        taken = files.create(path, own.content())
    else:
        other = _parse(content)
        left = 0.0 if other is None or _is_dead(other) else _seconds_left(files, path, other)
        if other is not None and left > 0:
            raise LeaseHeldError(
                f"store {files.url!r} is being {printable(other.doing)} by process {other.pid} on {printable(other.host)} since "
                f"{printable(other.since[:19])} UTC: wait until it has ended; if it was killed, run the same command again in "
                f"{math.ceil(left)} s"
            )
        taken = files.swap(path, content, own.content())
    if not taken:
        raise LeaseHeldError(f"another process has just taken {files.full(path)!r}: run the same command again later")
    return Lease(files, path, own)


def _seconds_left(files: StoreFiles, path: str, holder: Holder) -> float:
    """Return the seconds until a lease expires; not positive if it has."""
    written = files.modified(path)
    probe = f"{path.rpartition('/')[0]}/.now.{uuid.uuid4().hex}.tmp"
    files.write_bytes(probe, b"rmtscan", lasting=False)
    try:
        now = files.modified(probe)
    finally:
        files.remove(probe)
    if written is None or now is None:
        return (datetime.fromisoformat(holder.until) - datetime.now(UTC)).total_seconds()
    return holder.seconds - (now - written).total_seconds()


def _is_dead(holder: Holder) -> bool:
    """Whether the holder was a process that this one would see, and has ended: nobody has to wait for the lease to expire."""
    if not holder.space or holder.space != _space() or holder.pid == os.getpid():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it runs as another user, or the number is none of a process
        return False
    return False


def _space() -> str:
    """Name the start of this machine and the namespace in which process ids are counted: containers have their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _parse(content: bytes) -> Holder | None:
    """Read a lease; None for any other content, which may be overwritten."""
    try:
        values = json.loads(content) if len(content) <= _MOST_BYTES else None
        holder = Holder(**values) if isinstance(values, dict) else None
        if holder is None or type(holder.pid) is not int or holder.pid <= 0:
            return None
        if type(holder.seconds) not in (int, float) or not 0 < holder.seconds < math.inf:
            return None
        texts = (holder.owner, holder.doing, holder.host, holder.space, holder.since, holder.until)
        if not all(isinstance(text, str) for text in texts) or datetime.fromisoformat(holder.until).tzinfo is None:
            return None
    except (ValueError, TypeError, RecursionError):
        return None
    return holder
