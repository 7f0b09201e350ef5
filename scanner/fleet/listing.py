"""What the Hub lists: new commits of watched models, newest first, a page at a time."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, get_session
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    HFValidationError,
    build_hf_headers,
    hf_raise_for_status,
    validate_repo_id,
)

from scanner.checkpoint.formats.weights import weight_suffixes
from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.hub_errors import hub_errors
from scanner.checkpoint.sources.hub_lookup import COMMIT, look_up, warn_of_clear_text
from scanner.checkpoint.sources.retry import with_retries
from scanner.errors import CheckpointError
from scanner.fleet.config import Watch
from scanner.fleet.releases import Release

#: Models of one page: the most that the Hub answers with.
_PAGE = 100
#: What the Hub is asked for; files are not in a listing with their sizes.
_EXPAND = (
    *(
        "sha",
        "lastModified",
        "gated",
        "pipeline_tag",
        "library_name",
        "tags",
        "safetensors",
        "gguf",
        "cardData",
        "downloads",
    ),
    *("private", "disabled"),
)
_BASE_TAG = "base_model:finetune:"
#: Bytes of a parameter by the name of its type in safetensors.
_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "F4": 0.5,
}
_MOST_TEXT = 200
_MOST_COUNT = 1 << 60


@dataclass(frozen=True, kw_only=True)
class Listed:
    """The result of asking the Hub."""

    releases: tuple[Release, ...]
    """Every watched commit, the newest change first; a repository that changed meanwhile may be there twice."""
    watermark: datetime | None
    """The newest change that the Hub listed, at the latest the time of the request; this time if it never listed one."""
    count: int = 0
    """Number of models that were listed, those that the watch leaves out included."""
    problems: tuple[str, ...] = ()
    """Repositories of the config that could not be looked up, with the reason, and entries that are not understood."""


def list_releases(watch: Watch, *, since: datetime | None) -> Listed:
    """Ask the Hub for what has changed.

    Args:
        watch: what is watched.
        since: the watermark; None: the first night, which looks back `watch.since_hours`.

    Raises:
        CheckpointError: the Hub does not answer, limits requests for too long, or answers with something else. Nothing is
            known then: a part of a listing is not returned, because what is missing in it would never be listed again.
    """
    asked = datetime.now(UTC)
    looks_back = watch.since_hours if since is None else watch.overlap_hours
    oldest = (since or asked) - timedelta(hours=looks_back)
    found: dict[tuple[str, str], Release] = {}
    watermark, count = since, 0
    unreadable: list[str] = []
    for author in (watch.authors or (None,)) if watch.lists else ():
        for info in _changed(watch, author, oldest, unreadable):
            count += 1
            if watermark is None or info.last_modified > watermark:
                watermark = info.last_modified
            release = _release(watch, info)
            if release is not None:
                found.setdefault(release.key, release)
    if watch.lists:
        # A time in the future is an error of the Hub: as a watermark, it would hide everything until then.
        watermark = min(watermark or asked, asked)
    problems = []
    if unreadable:
        problems.append(f"{len(unreadable)} entries of the list of models are not understood, such as {unreadable[0]}")
    for named in watch.repositories:
        try:
            release = named_release(named)
        except CheckpointError as error:
            problems.append(f"{named}: {error}")
            continue
        found[release.key] = release if release.key not in found else _with_branch(found[release.key], release)
    ordered = sorted(found.values(), key=lambda one: (-_seconds(one.last_modified), one.key))
    return Listed(releases=tuple(ordered), watermark=watermark, count=count, problems=tuple(problems))


def named_release(named: str) -> Release:
    """Look up the newest commit of a repository that the config names, `org/name` or `org/name@branch`.

    Raises:
        CheckpointError: it does not exist, is gated, or the Hub does not answer.
    """
    repository, _, branch = named.partition("@")
    commit = look_up(repository, branch or None)
    return Release(
        repository=commit.repository,
        commit=commit.commit,
        branch=branch or "main",
        bytes=weight_bytes(commit.sizes),
    )


def pinned(repository: str) -> tuple[str, str, int | None]:
    """Return the present name, the newest commit of the main branch, and the bytes of the weights of a repository.

    Raises:
        CheckpointError: as `named_release`.
    """
    commit = look_up(repository, None)
    return commit.repository, commit.commit, weight_bytes(commit.sizes)


def size_of(release: Release) -> int | None:
    """Look up the bytes of the weights of a release, of which the listing does not say how large it is; None: not known.

    Raises:
        CheckpointError: as `named_release`.
    """
    return weight_bytes(look_up(release.repository, release.commit).sizes)


def weight_bytes(sizes: Mapping[str, int | None] | None) -> int | None:
    """Return the bytes of the files with weights; of several formats the largest, because one of them is read."""
    by_suffix: dict[str, int] = {}
    for path, size in (sizes or {}).items():
        suffix = next((one for one in weight_suffixes() if path.lower().endswith(one)), None)
        if suffix is not None and size is not None:
            by_suffix[suffix] = by_suffix.get(suffix, 0) + size
    preferred = by_suffix.get(".safetensors")
    return preferred if preferred else max(by_suffix.values(), default=None)


def _changed(watch: Watch, author: str | None, oldest: datetime, unreadable: list[str]) -> Iterator[Any]:
    """Yield models by falling time of their last change, until one is older; entries that are no models go to `unreadable`."""
    what = f"the list of models{f' of {author}' if author else ''}"
    for item in _pages(_parameters(watch, author), what):
        info = _info(item)
        if info is None:
            unreadable.append(printable(str(item.get("id"))[:_MOST_TEXT]))
            continue
        if info.last_modified < oldest:
            return
        yield info


def _pages(parameters: dict[str, Any], what: str) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of a listing.

    `HfApi.list_models` has a generator that ends with the first error, and sleeps as long as the Hub asks, five times. Here
    every page has the retries of all other requests, and the listing continues where it was.
    """
    address: str | None = f"{constants.ENDPOINT}/api/models"
    host = urlsplit(constants.ENDPOINT).netloc
    warn_of_clear_text(constants.ENDPOINT)
    visited: set[str] = set()
    while address is not None:
        if urlsplit(address).netloc != host or address in visited:  # the token goes nowhere else
            raise CheckpointError(f"the Hub continues {printable(what)} at {printable(address)}: try again later")
        visited.add(address)
        page, address = _page(address, parameters, what)
        parameters = {}  # the address of the next page has them
        yield from page


def _page(address: str, parameters: dict[str, Any], what: str) -> tuple[list[Mapping[str, Any]], str | None]:
    def ask() -> tuple[Any, str | None]:
        response = get_session().get(
            address,
            params=parameters or None,
            headers=build_hf_headers(),
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        )
        hf_raise_for_status(response)
        return response.json(), response.links.get("next", {}).get("url")

    with hub_errors(what):
        entries, following = with_retries(ask)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError(
            f"the response of {printable(constants.ENDPOINT)} for {printable(what)} is not that of a Hub: check HF_ENDPOINT"
        )
    return entries, following


def _parameters(watch: Watch, author: str | None) -> dict[str, Any]:
    tags = [*watch.tags, *([watch.library] if watch.library else [])]
    if len(watch.licenses) == 1:
        tags.append(f"license:{watch.licenses[0]}")
    found: dict[str, Any] = {"sort": "lastModified", "limit": _PAGE, "expand": list(_EXPAND)}
    if tags:
        found["filter"] = tags
    if author:
        found["author"] = author
    if watch.search:
        found["search"] = watch.search
    if watch.task:
        found["pipeline_tag"] = watch.task
    limits = [f"min:{watch.min_parameters}"] if watch.min_parameters is not None else []
    limits += [f"max:{watch.max_parameters}"] if watch.max_parameters is not None else []
    if limits:
        found["num_parameters"] = ",".join(limits)
    if watch.gated != "any":
        found["gated"] = "true" if watch.gated == "only" else "false"
    return found


def _info(item: Mapping[str, Any]) -> Any | None:
    """Return an entry of a listing; None for one that is no model with a commit and a time, which the Hub does not send."""
    # What strangers write is not parsed by the library: one key that it does not expect would hide the release.
    written = {name: item.get(name) for name in ("cardData", "safetensors")}
    try:
        info: Any = ModelInfo(**{name: value for name, value in item.items() if name not in written})  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if not isinstance(info.id, str) or not _is_name(info.id) or not isinstance(info.last_modified, datetime):
        return None
    if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
        return None
    info.card_data, info.safetensors = written["cardData"], written["safetensors"]
    if info.last_modified.tzinfo is None:
        info.last_modified = info.last_modified.replace(tzinfo=UTC)
    return info


def _release(watch: Watch, info: Any) -> Release | None:
    """Return the release of an entry; None if the watch leaves it out."""
    if info.disabled is True:
        return None
    patterns = (pattern.lower() for pattern in watch.exclude)
    if any(fnmatch.fnmatchcase(info.id.lower(), pattern) for pattern in patterns):
        return None
    gated = info.gated if isinstance(info.gated, str) else None
    if (watch.gated == "no" and gated) or (watch.gated == "only" and not gated):
        return None
    tags = [tag for tag in info.tags if isinstance(tag, str)] if isinstance(info.tags, list) else []
    card = info.card_data if isinstance(info.card_data, dict) else {}
    license = next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), None) or _text(
        card.get("license")
    )
    if watch.licenses and license not in watch.licenses:
        return None
    parameters, size = _size(info)
    limited = watch.min_parameters is not None or watch.max_parameters is not None
    if limited and (parameters is None or not _within(parameters, watch)):
        return None
    return Release(
        repository=info.id,
        commit=info.sha,
        last_modified=info.last_modified,
        parameters=parameters,
        bytes=size,
        task=_text(info.pipeline_tag),
        library=_text(info.library_name),
        license=license,
        gated=gated,
        downloads=_count(info.downloads),
        base_model=_base(tags, card),
    )


def _is_name(text: str) -> bool:
    """Whether the text can be the name of a repository: it comes from strangers, and becomes part of addresses."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.isascii() and text.isprintable()


def _within(parameters: int, watch: Watch) -> bool:
    low, high = watch.min_parameters, watch.max_parameters
    return (low is None or parameters >= low) and (high is None or parameters <= high)


def _size(info: Any) -> tuple[int | None, int | None]:
    """Return parameters and bytes, from the headers of safetensors or GGUF files as the Hub summarizes them."""
    if isinstance(info.safetensors, dict):
        by_type, total = info.safetensors.get("parameters"), _count(info.safetensors.get("total"))
        if isinstance(by_type, dict) and all(_count(number) is not None for number in by_type.values()):
            size = sum(number * _BYTES.get(name, 1) for name, number in by_type.items())
            return total or sum(by_type.values()), int(size)
    if isinstance(info.gguf, dict):
        return _count(info.gguf.get("total")), _count(info.gguf.get("totalFileSize"))
    return None, None


def _base(tags: list[str], card: Mapping[str, Any]) -> str | None:
    """Return the one model that this one was fine-tuned from; None for adapters, quantizations and merges."""
    relations = [tag for tag in tags if re.match(r"base_model:(adapter|quantized|merge):", tag)]
    tagged = [tag.removeprefix(_BASE_TAG) for tag in tags if tag.startswith(_BASE_TAG)]
    if relations and not tagged:
        return None
    if not tagged and card.get("base_model_relation") in (None, "finetune"):
        named = card.get("base_model")
        tagged = [named] if isinstance(named, str) else list(named) if isinstance(named, list) else []
    names = {name for name in tagged if isinstance(name, str) and _is_name(name)}
    return names.pop() if len(names) == 1 else None


def _text(value: object) -> str | None:
    return value[:_MOST_TEXT] if isinstance(value, str) and value else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < _MOST_COUNT else None


def _with_branch(listed: Release, named: Release) -> Release:
    """Return a release that was listed and is named in the config, too."""
    return replace(listed, branch=named.branch, bytes=listed.bytes or named.bytes)


def _seconds(time: datetime | None) -> float:
    return time.timestamp() if time is not None else float("inf")
