"""A lease in a store: one process at a time does a kind of work there; a lease that is not renewed expires."""

from __future__ import annotations

import json
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
        return replace(self, until=(now + length).isoformat())


class Lease:
    """A lease that this process has, renewed in a thread."""

    def __init__(self, files: StoreFiles, path: str, holder: Holder, length: timedelta) -> None:
        self._files, self._path, self._holder, self._length = files, path, holder, length
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
            raise LeaseHeldError(
                f"this process has lost {self._files.full(self._path)!r} ({self._lost}): run the same command again"
            )

    def start(self) -> None:
        """Renew the lease from now on."""
        self._thread.start()

    def end(self) -> None:
        """Stop renewing the lease, and give it back."""
        self._ended.set()
        self._thread.join()
        if self._lost is None:
            with suppress(StoreError):  # then it expires
                self._files.swap(self._path, self._holder.content(), None)

    def _renew(self) -> None:
        # Three chances before it expires.
        while not self._ended.wait(self._length.total_seconds() / 4):
            self._once()

    def _once(self) -> None:
        following = self._holder.renewed(self._length)
        try:
            if self._files.swap(self._path, self._holder.content(), following.content()):
                self._holder = following
            else:
                self._lost = "another process has taken it"
        except StoreError as error:
            if self._holder.expired:
                self._lost = str(error)


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
    finally:
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
    ).renewed(length)
    if files.create(path, own.content()):
        return Lease(files, path, own, length)
    content = files.read_bytes(path)
    if content is None:  # its holder has just ended
        taken = files.create(path, own.content())
    else:
        other = _parse(content)
        if other is not None and not other.expired and not _is_dead(other):
            raise LeaseHeldError(
                f"store {files.url!r} is being {printable(other.doing)} by process {other.pid} on {printable(other.host)} since "
                f"{printable(other.since[:19])} UTC: wait until it has ended; if it was killed, run the same command after "
                f"{printable(other.until[:19])} UTC"
            )
        taken = files.swap(path, content, own.content())
    if not taken:
        raise LeaseHeldError(f"another process has just taken {files.full(path)!r}: run the same command again later")
    return Lease(files, path, own, length)


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
        texts = (holder.owner, holder.doing, holder.host, holder.space, holder.since, holder.until)
        if not all(isinstance(text, str) for text in texts) or datetime.fromisoformat(holder.until).tzinfo is None:
            return None
    except (ValueError, TypeError, RecursionError):
        return None
    return holder
