"""How long to go on asking a server that is busy, limits requests or drops connections: the Hub or any other store."""

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

_log = logging.getLogger(__name__)

MOST_TRIES = 6
MOST_CONNECTION_TRIES = 3
"""Where nothing answers at all it is more often the network or the name that is wrong than the moment."""

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 16.0
LONGEST_WAIT = 330.0
"""Seconds in all: the Hub counts requests in windows of five minutes."""

LONGEST_ASKED = 86_400.0
"""A server that wants to be left alone for longer than a day says nothing that anybody could act on."""

_TEMPORARY = frozenset({408, 429, 500, 502, 503, 504})
# What stores say instead of a status, in the words of the operating system.
_TEMPORARY_ERRNO = frozenset({errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT})
# Classes of clients that stores may be read with; an error of one can only come if its module has been imported.
_TEMPORARY_CLASSES = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "botocore.exceptions": ("HTTPClientError", "ConnectionError"),
}
_NOT_CONNECTED_CLASSES = {"aiohttp": ("ClientConnectorError",), "botocore.exceptions": ("EndpointConnectionError",)}

T = TypeVar("T")


class Patience:
    """The tries and the waiting of one piece of work."""

    def __init__(self) -> None:
        self._failures = 0
        self._waited = 0.0

    def renew(self) -> None:
        """Count tries anew: the last one got somewhere."""
        self._failures = 0

    def after(self, error: Exception) -> None:
        """Wait as long as the server asks, and at least twice as long as after the last failure.

        Raises:
            Exception: `error` itself, when it is not a temporary one or has come too often, or waiting would take too long.
        """
        if not is_temporary(error):
            raise error
        self._failures += 1
        pause = max(min(FIRST_PAUSE * 2 ** (self._failures - 1), LONGEST_PAUSE), retry_after(error) or 0.0)
        # Not all workers at the same moment, and not a moment before the time that the server named.
        pause += random.random() * min(pause / 4, 2.0)
        most = MOST_CONNECTION_TRIES if _is_not_connected(error) else MOST_TRIES
        if self._failures >= most or self._waited + pause > LONGEST_WAIT:
            raise error
        _log.warning("%s: trying again in %.1f s", type(error).__name__, pause)
        self._waited += pause
        time.sleep(pause)


def patiently(call: Callable[[], T]) -> T:
    """Return what `call` returns, calling it again after temporary errors."""
    patience = Patience()
    while True:
        try:
            return call()
        except Exception as error:  # every store has errors of its own, which no common class holds together
            patience.after(error)


def retry_after(error: Exception) -> float | None:
    """How many seconds the server that answered with an error wants to be left alone; None: it does not say.

    At most a day, whatever the server says.
    """
    error = _reason(error)
    headers = getattr(getattr(error, "response", error), "headers", None)
    if not isinstance(headers, Mapping):
        return None
    try:
        asked = _asked({str(key).lower(): str(value) for key, value in headers.items()}, _status(error))
    except (ValueError, OverflowError):  # numbers and years without end
        return None
    return None if asked is None else min(max(asked, 0.0), LONGEST_ASKED)


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
    """Tell whether the same call may go well in a moment."""
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
    # fsspec tells whatever goes wrong with a web server as a file that is not there, and keeps what it was.
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def _is_one_of(error: Exception, classes: Mapping[str, tuple[str, ...]]) -> bool:
    known = (getattr(sys.modules.get(module), name, None) for module, names in classes.items() for name in names)
    return isinstance(error, tuple(kind for kind in known if isinstance(kind, type)))


def _status(error: Exception) -> int | None:
    """The status of a server's answer, under the names that clients give it."""
    response = getattr(error, "response", None)
    places = ((response, "status_code"), (error, "status"), (error, "status_code"), (error, "code"))
    found = (getattr(place, name, None) for place, name in places)
    return next((int(status) for status in found if isinstance(status, int)), None)
