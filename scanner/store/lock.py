"""A lock on a store for work that reorganizes its files, so that two processes do not do so at the same time."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from scanner.errors import StoreError
from scanner.store.checksums import printable
from scanner.store.files import StoreFiles

PATH = "maintenance.lock"
EXPIRY = timedelta(hours=1)
"""A lock that was not renewed for so long is that of a process that was killed, or whose machine is gone."""
_RENEWAL = 60.0


class Lock:
    """A lock that this process holds."""

    def __init__(self, files: StoreFiles, doing: str) -> None:
        self._files, self._doing = files, doing
        self._token = uuid.uuid4().hex
        self._renewed = time.monotonic()

    def content(self) -> bytes:
        """Return what is written into the file."""
        now = datetime.now(UTC).isoformat()
        values = {"token": self._token, "doing": self._doing, "host": socket.gethostname(), "pid": os.getpid()}
        return json.dumps(values | {"renewed_at": now}).encode()

    def keep(self, *, now: bool = False) -> None:
        """Renew the lock, if it is time or `now`.

        Raises:
            StoreError: another process has taken it, because this one did not renew it in time.
        """
        if not now and time.monotonic() - self._renewed < _RENEWAL:
            return
        if self._parsed().get("token") != self._token:
            raise StoreError(
                f"the lock of store {self._files.url!r} was taken by another process, because this one was too slow: run the "
                "command again"
            )
        self._files.write_bytes(PATH, self.content(), lasting=False)
        self._renewed = time.monotonic()

    def release(self) -> None:
        """Remove the lock, if it is still that of this process."""
        with suppress(StoreError):
            if self._parsed().get("token") == self._token:
                self._files.remove(PATH)

    def _parsed(self) -> dict[str, Any]:
        return _parsed(self._files.read_bytes(PATH))


@contextmanager
def locked(files: StoreFiles, doing: str) -> Iterator[Lock]:
    """Hold the lock of a store for a block.

    Args:
        files: the store.
        doing: what the block does, as in "compacted", for the error of other processes.

    Raises:
        StoreError: another process holds it, or the store cannot be written.
    """
    lock = Lock(files, doing)
    for _ in range(2):
        if files.create(PATH, lock.content()):
            break
        other = _parsed(files.read_bytes(PATH))
        if not _is_stale(other):
            who = f"process {other.get('pid')} on {printable(str(other.get('host')))}"
            raise StoreError(
                f"store {files.url!r} is being {printable(str(other.get('doing') or 'changed'))} by {who}: wait until it has "
                f"ended, or, if it has been killed, remove {files.full(PATH)!r}"
            )
        files.remove(PATH)
    else:
        raise StoreError(f"store {files.url!r} is being changed by another process: run the command again")
    try:
        yield lock
    finally:
        lock.release()


def _parsed(content: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_stale(other: dict[str, Any]) -> bool:
    try:
        if datetime.now(UTC) - datetime.fromisoformat(str(other["renewed_at"])) > EXPIRY:
            return True
        if other["host"] != socket.gethostname() or type(other["pid"]) is not int:
            return False
        os.kill(other["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    except (KeyError, ValueError, TypeError, OverflowError):
        return True
    return False
