"""The retry policy for servers that are busy, limit requests or drop connections: the Hub and other stores."""

import errno
import logging
import random
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

from scanner.errors import RateLimitedError

_log = logging.getLogger(__name__)

MAX_TRIES = 6
MAX_CONNECTION_TRIES = 3
"""Tries when no connection can be made: a wrong name or a broken network does not heal by waiting."""

FIRST_PAUSE = 0.5
MAX_PAUSE = 16.0
MAX_WAIT = 330.0
"""Total seconds of waiting: the Hub counts requests in windows of five minutes."""

MAX_RETRY_AFTER = 86_400.0
"""Upper limit, in seconds, for what a server may ask for: one day."""

_TEMPORARY = frozenset({408, 429, 500, 502, 503, 504})
# Errors of the operating system that some stores raise instead of reporting a status.
_TEMPORARY_ERRNO = frozenset({errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT})
# After which the file itself may still be good: an error of a disk or network file system, too many open files, no memory.
_MAY_PASS_ERRNO = _TEMPORARY_ERRNO | {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR}
# Exceptions of client libraries; they can only occur if the module has been imported.
_TEMPORARY_CLASSES = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "botocore.exceptions": ("HTTPClientError", "ConnectionError"),
}
_NOT_CONNECTED_CLASSES = {"aiohttp": ("ClientConnectorError",), "botocore.exceptions": ("EndpointConnectionError",)}

T = TypeVar("T")


def may_pass(error: BaseException) -> bool:
    """Whether the same read may succeed later: a limit of requests, or a temporary error of a server, connection or disk."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RateLimitedError | httpx2.TransportError | ConnectionError | TimeoutError):
            return True
        if isinstance(seen, OSError) and seen.errno in _MAY_PASS_ERRNO:
            return True
        if isinstance(seen, Exception) and is_temporary(seen):
            return True
        seen = seen.__cause__
    return False


class RetryPolicy:
    """Counts the failures of one operation and waits between its tries, with exponential backoff and jitter."""

    def __init__(self) -> None:
        self._failures = 0
        self._waited = 0.0

    def reset(self) -> None:
        """Forget earlier failures, because the last try made progress."""
        self._failures = 0

    def wait_after(self, error: Exception) -> None:
        """Wait as long as the server asks, and at least twice as long as after the previous failure.

        Raises:
            Exception: `error` itself, if it is not temporary, if there were too many tries, or if the wait would be too long.
        """
        if not is_temporary(error):
            raise error
        self._failures += 1
        pause = max(min(FIRST_PAUSE * 2 ** (self._failures - 1), MAX_PAUSE), retry_after(error) or 0.0)
        # Jitter keeps workers from retrying at the same moment; it only adds to what the server asks for.
        pause += random.random() * min(pause / 4, 2.0)
        most = MAX_CONNECTION_TRIES if _is_not_connected(error) else MAX_TRIES
        if self._failures >= most or self._waited + pause > MAX_WAIT:
            raise error
        _log.warning("%s: retrying in %.1f s", type(error).__name__, pause)
        self._waited += pause
        time.sleep(pause)


def with_retries(call: Callable[[], T]) -> T:
    """Return what `call` returns; call it again after temporary errors."""
    policy = RetryPolicy()
    while True:
        try:
            return call()
        except Exception as error:  # stores raise many kinds of exceptions without a common base class
            policy.wait_after(error)


def retry_after(error: Exception) -> float | None:
    """Return the seconds after which the server allows the next request, at most one day; None if it does not say."""
    error = _reason(error)
    headers = getattr(getattr(error, "response", error), "headers", None)
    if not isinstance(headers, Mapping):
        return None
    try:
        asked = _asked({str(key).lower(): str(value) for key, value in headers.items()}, _status(error))
    except (ValueError, OverflowError):  # numbers and years out of range
        return None
    return None if asked is None else min(max(asked, 0.0), MAX_RETRY_AFTER)


def _asked(headers: Mapping[str, str], status: int | None) -> float | None:
    limit = parse_ratelimit_headers(headers) if status == 429 else None
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.isdecimal():
        return float(value)
    return (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds()


def is_temporary(error: Exception) -> bool:
    """Tell whether the same call may succeed later."""
    error = _reason(error)
    status = _status(error)
    if status is not None:
        return status in _TEMPORARY
    if isinstance(error, OSError) and error.errno in _TEMPORARY_ERRNO:
        return True
    own = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, TimeoutError, ConnectionError)
    return isinstance(error, own) or _is_one_of(error, _TEMPORARY_CLASSES)


def _is_not_connected(error: Exception) -> bool:
    error = _reason(error)
    own = (httpx2.ConnectError, ConnectionRefusedError)
    return isinstance(error, own) or _is_one_of(error, _NOT_CONNECTED_CLASSES)


def _reason(error: Exception) -> Exception:
    # fsspec reports every error of a web server as a missing file, with the original error as its cause.
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def _is_one_of(error: Exception, classes: Mapping[str, tuple[str, ...]]) -> bool:
    known = (getattr(sys.modules.get(module), name, None) for module, names in classes.items() for name in names)
    return isinstance(error, tuple(kind for kind in known if isinstance(kind, type)))


def _status(error: Exception) -> int | None:
    """Return the HTTP status of an error; client libraries store it under different names."""
    response = getattr(error, "response", None)
    places = ((response, "status_code"), (error, "status"), (error, "status_code"), (error, "code"))
    found = (getattr(place, name, None) for place, name in places)
    return next((int(status) for status in found if isinstance(status, int)), None)
