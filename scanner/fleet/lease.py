"""A lease in the store: one process at a time runs the nightly scan; a lease that is not renewed expires."""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scanner.checkpoint.names import printable
from scanner.errors import ScannerError, StoreError
from scanner.store.files import StoreFiles

PATH = "leases/nightly.json"
_MOST_BYTES = 1 << 16


class LeaseHeldError(ScannerError):
    """Another process has the lease."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who has a lease, and until when."""

    owner: str
    """32 random hexadecimal digits."""
    host: str
    pid: int
    space: str
    """Where the process id means something."""
    since: str
    """ISO 8601, UTC."""
    until: str
    """ISO 8601, UTC; later than now while the holder runs."""

    def content(self) -> bytes:
        """Return the content of the file."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @property
    def expired(self) -> bool:
        """Whether the holder has not renewed the lease."""
        return datetime.fromisoformat(self.until) < datetime.now(UTC)

    def renewed(self, length: timedelta) -> Holder:
        """Return the same holder for this time from now."""
        now = datetime.now(UTC)
        return Holder(
            owner=self.owner,
            host=self.host,
            pid=self.pid,
            space=self.space,
            since=self.since,
            until=(now + length).isoformat(),
        )


class Lease:
    """A lease that this process has, renewed in a thread."""

    def __init__(self, files: StoreFiles, holder: Holder, length: timedelta) -> None:
        self._files, self._holder, self._length = files, holder, length
        self._ended = threading.Event()
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._renew, name="rmtscan-lease", daemon=True)

    def check(self) -> None:
        """Check that this process still has the lease; to be called before everything that others must not do at the same time.

        Raises:
            LeaseHeldError: it was not renewed in time, and another process may have taken it.
        """
        if self._lost is None and self._holder.expired:
            # A suspended machine, or a store that was gone: the thread has not run.
            self._once()
        if self._lost is not None:
            raise LeaseHeldError(f"the nightly run has lost its lease ({self._lost}): run the same command again")

    def start(self) -> None:
        """Renew the lease from now on."""
        self._thread.start()

    def end(self) -> None:
        """Stop renewing the lease, and give it back."""
        self._ended.set()
        self._thread.join()
        if self._lost is None:
            with suppress(StoreError):  # then it expires
                self._files.swap(PATH, self._holder.content(), None)

    def _renew(self) -> None:
        # Three chances before it expires.
        while not self._ended.wait(self._length.total_seconds() / 4):
            self._once()

    def _once(self) -> None:
        following = self._holder.renewed(self._length)
        try:
            if self._files.swap(PATH, self._holder.content(), following.content()):
                self._holder = following
            else:
                self._lost = "another process has taken it"
        except StoreError as error:
            if self._holder.expired:
                self._lost = str(error)


@contextmanager
def lease(files: StoreFiles, length: timedelta) -> Iterator[Lease]:
    """Have the lease of nightly scans in a store until the block ends.

    Args:
        files: the store.
        length: time after which others may take over from a holder that was killed; it is renewed four times as often.

    Raises:
        LeaseHeldError: another process has it.
        StoreError: the store cannot be read or written.
    """
    found = _take(files, length)
    found.start()
    try:
        yield found
    finally:
        found.end()


def _take(files: StoreFiles, length: timedelta) -> Lease:
    now = datetime.now(UTC).isoformat()
    own = Holder(
        owner=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid(), space=_space(), since=now, until=now
    ).renewed(length)
    if files.create(PATH, own.content()):
        return Lease(files, own, length)
    content = files.read_bytes(PATH)
    if content is None:  # its holder has just ended
        taken = files.create(PATH, own.content())
    else:
        other = _parse(content)
        if other is not None and not other.expired and not _is_dead(other):
            raise LeaseHeldError(
                f"another nightly run has the lease of the store {files.url!r}: process {other.pid} on {printable(other.host)}, "
                f"since {printable(other.since[:19])} UTC; it ends with that run, or expires at {printable(other.until[:19])} UTC"
            )
        taken = files.swap(PATH, content, own.content())
    if not taken:
        raise LeaseHeldError(f"another nightly run has just taken the lease of the store {files.url!r}")
    return Lease(files, own, length)


def _is_dead(holder: Holder) -> bool:
    """Whether the holder was a process that this one would see, and has ended: nobody has to wait for the lease to expire."""
    if not holder.space or holder.space != _space() or holder.pid == os.getpid():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
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
        texts = (holder.owner, holder.host, holder.space, holder.since, holder.until)
        if not all(isinstance(text, str) for text in texts) or datetime.fromisoformat(holder.until).tzinfo is None:
            return None
    except (ValueError, TypeError, RecursionError):
        return None
    return holder
