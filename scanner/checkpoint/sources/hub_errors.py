"""Errors of the Hub, explained in one line that says what to do."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
    XetDownloadError,
)

from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.retry import retry_after
from scanner.errors import CheckpointError, GatedError, MissingError, RateLimitedError


@contextmanager
def hub_errors(repository: str, *, revision: str | None = None, name: str | None = None) -> Iterator[None]:
    """Turn the errors of huggingface_hub and its HTTP client into ours.

    Raises:
        GatedError: the terms of the repository have not been accepted, or the token has no access.
        MissingError: the repository, the revision or the file does not exist.
        RateLimitedError: the Hub limits requests, and the wait would be too long.
        CheckpointError: any other error.
    """
    try:
        yield
    except (OSError, httpx2.HTTPError, httpx2.InvalidURL, EntryNotFoundError, RevisionResolutionError) as error:
        _explain(error, repository, revision=revision, name=name)
    except (
        ValueError,
        OverflowError,
        XetDownloadError,
    ) as error:  # an invalid name or address, a time out of range
        raise CheckpointError(f"{printable(repository)}: {_one_line(error)}") from error


def _explain(error: Exception, repository: str, *, revision: str | None, name: str | None) -> NoReturn:
    shown = printable(repository)
    thing = f"{printable(name)} of {shown}" if name else shown
    host = printable(constants.ENDPOINT)
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError | RevisionResolutionError):
        if constants.is_offline_mode():
            raise CheckpointError(
                f"{thing} is not in the local cache {printable(constants.HF_HUB_CACHE)}, and HF_HUB_OFFLINE forbids "
                "requests to the Hub: unset it, or download the model first"
            ) from error
        raise CheckpointError(
            f"{thing} cannot be downloaded from {host}: {_one_line(error.__cause__ or error)}"
        ) from error
    if isinstance(error, GatedRepoError):
        raise GatedError(
            f"{shown} is gated: accept its terms at {host}/{shown} and set HF_TOKEN to a token of that account"
        ) from error
    if isinstance(error, RepositoryNotFoundError):
        raise MissingError(
            f"there is no model {shown} on {host}, or it is private: check the name, and HF_TOKEN if it is private"
        ) from error
    if isinstance(error, RevisionNotFoundError):
        raise MissingError(f"{shown} has no branch, tag or commit '{printable(revision or 'main')}'") from error
    if isinstance(error, EntryNotFoundError):
        raise MissingError(f"{thing} is not there at revision '{printable(revision or 'main')}'") from error
    if isinstance(error, HfHubHTTPError):
        _explain_status(error, shown, thing, host)
    if isinstance(error, httpx2.HTTPError | httpx2.InvalidURL):
        raise CheckpointError(
            f"{thing} cannot be read from {_host_of(error) or host}: {_one_line(error)}; try again, or set "
            "HF_HUB_OFFLINE=1 to use what is in the local cache"
        ) from error
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        raise CheckpointError(disk_full(shown)) from error
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else _one_line(error)
    raise CheckpointError(f"{thing}: {reason}") from error


def disk_full(repository: str, detail: str = "the disk is full") -> str:
    """Return the message for a download that does not fit onto the disk."""
    return (
        f"{repository} does not fit into the Hub cache {printable(constants.HF_HUB_CACHE)}: {detail}; make room, set HF_HOME "
        "to a larger disk, or open the model without download, so that only the tensors that are scanned are read"
    )


def _explain_status(error: HfHubHTTPError, shown: str, thing: str, host: str) -> NoReturn:
    status = error.response.status_code
    server = _host_of(error) or host
    if status == 429:
        pause = retry_after(error)
        later = f"in {pause:.0f} s" if pause else "in some minutes"
        raise RateLimitedError(
            f"{server} limits requests and refused {thing}: try again {later}; a token in HF_TOKEN raises the limit"
        ) from error
    if isinstance(error, DisabledRepoError):
        raise MissingError(f"{shown} was disabled on {host}: it can no longer be read") from error
    if status in (401, 403):
        raise GatedError(
            f"{server} refuses access to {thing} (status {status}): check HF_TOKEN and what it may read"
        ) from error
    if status == 404:
        raise MissingError(f"{thing} is not on {server}") from error
    raise CheckpointError(f"{server} answers with status {status} for {thing}: try again later") from error


def _host_of(error: Exception) -> str | None:
    # Only the host: the rest of a signed address is a credential.
    try:
        request = error.response.request if isinstance(error, HfHubHTTPError) else error.request  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):  # the error occurred before there was a request
        return None
    return printable(urlsplit(str(request.url)).netloc.rpartition("@")[2]) or None


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    return printable(text.splitlines()[0]) if text else type(error).__name__
