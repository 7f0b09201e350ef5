"""The commit of a model that a reference means, and its files: one request to the Hub."""

import ipaddress
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_token, parse_hf_uri
from huggingface_hub.errors import HfUriError, HFValidationError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from scanner.checkpoint.names import is_plain_name, printable
from scanner.checkpoint.sources.hub_cache import cached_commits
from scanner.checkpoint.sources.hub_errors import hub_errors
from scanner.checkpoint.sources.retry import with_retries
from scanner.errors import CheckpointError

_log = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

# gpt2 and other early names without an organization.
_SINGLE_NAME = re.compile(r"hf://([^/@]+)(?:@([^/]+)(?:/(.*))?)?", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class HubReference:
    """A model on the Hub as a user names it; without a revision, the newest commit of its main branch."""

    repository: str
    revision: str | None
    path: str


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A commit of a model; `sizes` maps the paths of its files to their sizes (None: not requested, or not reported)."""

    repository: str
    commit: str
    sizes: Mapping[str, int | None] | None


def parse_hub_reference(reference: str) -> HubReference:
    """Parse `hf://org/name[@revision][/path]`, or the address of a page of the Hub.

    Raises:
        CheckpointError: the reference is invalid, or names a dataset or a space.
    """
    shown = printable(reference)
    single = _SINGLE_NAME.fullmatch(reference)
    try:
        if single is not None:
            repository, revision, path = single[1], single[2], single[3] or ""
        else:
            uri = parse_hf_uri(reference, endpoint=constants.ENDPOINT)
            if uri.type != "model":
                raise CheckpointError(f"{shown} is a {uri.type}, not a model: write hf://org/name")
            repository, revision, path = uri.id, uri.revision, uri.path_in_repo
        validate_repo_id(repository)
    except (HfUriError, HFValidationError) as error:
        raise CheckpointError(
            f"{shown} is not a model on the Hub: write org/name, org/name@revision or hf://org/name@revision/path"
        ) from error
    parts = [*(path.strip("/").split("/") if path else []), *(revision.split("/") if revision else [])]
    if not all(is_plain_name(part) for part in parts):
        raise CheckpointError(f"{shown} does not name a branch, folder or file that a repository can have")
    return HubReference(repository=repository, revision=revision, path=path.strip("/"))


def find_commit(reference: HubReference) -> Commit:
    """Find the commit that a reference means. A full commit hash is taken as it is; offline, the cache is searched.

    Raises:
        GatedError, MissingError, RateLimitedError: as the Hub responds.
        CheckpointError: the Hub does not respond, or the response is invalid.
    """
    repository, revision = reference.repository, reference.revision
    if revision is not None and COMMIT.fullmatch(revision):
        return Commit(repository=repository, commit=revision, sizes=None)
    if not constants.is_offline_mode():
        return look_up(repository, revision)
    if revision is not None and (commits := cached_commits(repository, revision)):
        return Commit(repository=repository, commit=commits[0], sizes=None)
    with hub_errors(repository, revision=revision):
        found = HfApi().resolve_revision(
            repository, revision=revision, cache_dir=constants.HF_HUB_CACHE, local_files_only=True
        )
    return Commit(repository=repository, commit=_checked_commit(found.resolved, repository), sizes=None)


def look_up(repository: str, revision: str | None) -> Commit:
    """Request the commit of a branch or tag and its files from the Hub.

    Raises:
        GatedError, MissingError, RateLimitedError: as the Hub responds.
        CheckpointError: the Hub does not respond, or the response is invalid.
    """
    with hub_errors(repository, revision=revision):
        info = with_retries(lambda: _model_info(repository, revision))
    commit = _checked_commit(info.sha, repository)
    sizes = {
        file.rfilename: file.size if isinstance(file.size, int) and file.size >= 0 else None
        for file in info.siblings or []
        if isinstance(file.rfilename, str)
    }
    # A renamed model is reported under its new name.
    name = info.id if isinstance(info.id, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", info.id, re.ASCII) else repository
    return Commit(repository=name, commit=commit, sizes=sizes)


@cache
def warn_of_clear_text(endpoint: str) -> None:
    """Log a warning, once, if a token is sent to the Hub at `endpoint` without encryption and over a network."""
    address = urlsplit(endpoint)
    if address.scheme == "http" and not _is_loopback(address.hostname or "") and get_token():
        _log.warning(
            "warning: HF_ENDPOINT is %s: your token for the Hub is sent without encryption, and others on the network can read it; "
            "use https, or unset the token",
            printable(f"http://{address.netloc.rpartition('@')[2]}"),
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _model_info(repository: str, revision: str | None) -> ModelInfo:
    warn_of_clear_text(constants.ENDPOINT)
    try:
        return HfApi(endpoint=constants.ENDPOINT).model_info(
            repository, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, OSError | HFValidationError):  # an error of a bad request is a ValueError too
            raise
        raise _not_a_hub(repository) from error


def _checked_commit(commit: object, repository: str) -> str:
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise _not_a_hub(repository)
    return commit


def _not_a_hub(repository: str) -> CheckpointError:
    return CheckpointError(
        f"the response of {printable(constants.ENDPOINT)} for {printable(repository)} is not that of a Hub: check HF_ENDPOINT"
    )
