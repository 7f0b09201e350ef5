"""How long to go on asking a server that is busy, limits requests or drops connections."""

import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

_log = logging.getLogger(__name__)

MOST_TRIES = 6
MOST_CONNECTION_TRIES = 3
"""Where nothing answers at all it is more often the network or the name that is wrong than the moment."""

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 16.0
LONGEST_WAIT = 330.0
"""Seconds in all: the Hub counts requests in windows of five minutes."""

_TEMPORARY = frozenset({408, 429, 500, 502, 503, 504})

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
        """Wait as long as the server asks, or else twice as long as after the last failure.

        Raises:
            Exception: `error` itself, when it is not a temporary one or has come too often, or waiting would take too long.
        """
        if not _is_temporary(error):
            raise error
        self._failures += 1
        asked = retry_after(error)
        pause = min(FIRST_PAUSE * 2 ** (self._failures - 1), LONGEST_PAUSE) if asked is None else asked
        # Not all workers at the same moment, and not a moment before the time that the server named.
        pause += random.random() * min(pause / 4, 2.0)
        most = MOST_CONNECTION_TRIES if isinstance(error, httpx2.ConnectError) else MOST_TRIES
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
        except (httpx2.TransportError, HfHubHTTPError) as error:
            patience.after(error)


def retry_after(error: Exception) -> float | None:
    """How many seconds the server that answered with an error wants to be left alone; None: it does not say."""
    if not isinstance(error, HfHubHTTPError):
        return None
    headers = error.response.headers
    limit = parse_ratelimit_headers(headers) if error.response.status_code == 429 else None
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal() and len(value) < 10:
        return float(value)
    try:
        then = parsedate_to_datetime(value)
    except ValueError:
        return None
    now = datetime.now(UTC)
    return max(0.0, (then.astimezone(UTC) - now).total_seconds())


def _is_temporary(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TEMPORARY
    return isinstance(error, httpx2.TimeoutException | httpx2.NetworkError | httpx2.RemoteProtocolError)
