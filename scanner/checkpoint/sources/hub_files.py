"""The files of one commit on the Hugging Face Hub, read from the local cache if it has them, else by byte ranges."""

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from scanner.checkpoint.names import is_plain_name, printable
from scanner.checkpoint.sources.hub_cache import cached_file, cached_listing, cached_snapshot, download
from scanner.checkpoint.sources.hub_errors import hub_errors
from scanner.checkpoint.sources.hub_lookup import look_up, warn_of_clear_text
from scanner.checkpoint.sources.local_files import LocalFiles
from scanner.checkpoint.sources.ranges import ByteRange, Sink
from scanner.checkpoint.sources.remote_files import RemoteFiles
from scanner.checkpoint.sources.retry import RetryPolicy, with_retries
from scanner.errors import CheckpointError, MissingError
from scanner.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SOURCE = re.compile(
    r"hf://(?P<repository>[^@]+)@(?P<commit>[0-9a-f]{40}|[0-9a-f]{64})(?P<folder>(?:/[^/]+(?=/))*)(?:/(?P<file>[^/]*))?",
    re.DOTALL,
)
_MODEL_CARD = "README.md"

# A server that ignores ranges and sends whole files is tolerated up to this size.
_WHOLE_FILE_BYTES = 2**20
# The retry count is reset after this many bytes.
_PROGRESS_BYTES = 2**20
_MAX_REDIRECTS = 5
# Signed addresses of the storage behind the Hub are valid for an hour; an expired one is renewed.
_ADDRESS_SECONDS = 900.0
_EXPIRED = frozenset({400, 401, 403, 404, 410})


@lru_cache(maxsize=64)
def hub_files(source: str) -> "HubFiles":
    """Return the files of a source; the object is cached with its sizes and addresses, because a commit does not change."""
    return HubFiles(source)


class HubFiles(RemoteFiles):
    """`Files` of `hf://org/name@commit`, of a folder in it (with `/` at its end) or of a file in it (without).

    Raises:
        GatedError, MissingError, RateLimitedError: from every method, as the Hub responds.
        CheckpointError: `source` has another form; a response is cut short too often or is not what was requested;
            offline, a file is not in the cache.
    """

    def __init__(self, source: str) -> None:
        found = _SOURCE.fullmatch(source)
        parts = [*found["folder"].split("/")[1:], *filter(None, [found["file"]])] if found else [""]
        if found is None or not all(is_plain_name(part) for part in parts):
            raise CheckpointError(
                f"{printable(source)} is not a commit of a model on the Hub, or a folder or file of one"
            )
        super().__init__(source, named=found["file"] or None)
        self.repository = found["repository"]
        self._commit = self.commit = found["commit"]
        self._folder = found["folder"].lstrip("/")
        self.place = printable("/".join(filter(None, [self.repository, self._folder])))
        self._tree: Mapping[str, int | None] | None = None
        self._sizes: dict[str, int] = {}
        self._addresses: dict[str, tuple[str, float]] = {}
        self._whole = False
        self._branches: list[str] = []

    # ---- names and sizes

    def names(self) -> tuple[str, ...]:
        """Return the names of the files in the folder, sorted; names that are not plain are left out."""
        return tuple(sorted(name for name in self._inside() if is_plain_name(name)))

    def folders(self) -> tuple[str, ...]:
        """Return the names of the folders in the folder, sorted."""
        firsts = {name.partition("/")[0] for name in self._inside() if "/" in name}
        return tuple(sorted(name for name in firsts if is_plain_name(name)))

    def folder(self, name: str) -> "HubFiles":
        """Return the files in one of the folders."""
        path = self._path(name)
        return hub_files(f"hf://{self.repository}@{self._commit}/{path}/")

    def neighbors(self) -> tuple[str, ...]:
        """Return the names of the folders beside this one and its own, sorted; none for the top of the repository."""
        if not self._folder:
            return ()
        above = self._folder.rpartition("/")[0]
        return hub_files(f"hf://{self.repository}@{self._commit}/{above}{'/' if above else ''}").folders()

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        if not is_plain_name(name):
            return False
        if self._cached(name) is not None:
            return True
        if name == _MODEL_CARD and constants.is_offline_mode():
            return False  # a missing model card is no reason to fail
        return self._path(name) in self._listing()

    def size(self, name: str) -> int:
        """Return the size of a file in bytes: from the cache, from a listing that was read before, or else by a request."""
        local = self._cached(name)
        if local is not None:
            return local.size(name)
        listed = self._tree.get(self._path(name)) if self._tree is not None else None
        size = self._sizes.get(name) if listed is None else listed
        if size is None:
            with self._explained(name):
                size = self._sizes[name] = self._ask_size(name)
        return size

    def listed(self, sizes: Mapping[str, int | None]) -> None:
        """Set the listing: the paths of all files of the commit, and their sizes where they are known."""
        self._tree = dict(sizes)

    def identity(self, names: Iterable[str], *, check: Callable[[], None] = lambda: None) -> str:
        """Return a hash of repository, commit and path: a commit does not change, so nothing is read."""
        path = "/".join(filter(None, [self._folder, self.named]))
        text = f"hub:{self.repository}@{self._commit}" + (f":{path}" if path else "")
        return hashlib.sha256(text.encode()).hexdigest()

    def _inside(self) -> list[str]:
        start = f"{self._folder}/" if self._folder else ""
        return [path.removeprefix(start) for path in self._listing() if path.startswith(start)]

    def _listing(self) -> Mapping[str, int | None]:
        if self._tree is None:
            tree = cached_listing(self.repository, self._commit)
            if tree is None and constants.is_offline_mode():
                tree = cached_snapshot(self.repository, self._commit)
            self._tree = (look_up(self.repository, self._commit).sizes or {}) if tree is None else tree
        return self._tree

    # ---- reading

    def read(self, name: str, start: int, size: int) -> bytes:
        """Return `size` bytes from byte `start` on; fewer only where the file ends."""
        local = None if name in self._heads and not self._whole else self._local(name)
        return super().read(name, start, size) if local is None else local.read(name, start, size)

    def read_ranges(self, ranges: "Sequence[ByteRange]") -> "list[NDArray[np.uint8]]":
        """Return the bytes of every range, in their order, as writable uint8 arrays."""
        contents: dict[int, NDArray[np.uint8]] = {}
        for name in dict.fromkeys(wanted.name for wanted in ranges):
            indices = [index for index, wanted in enumerate(ranges) if wanted.name == name]
            local = self._local(name)
            reader = super().read_ranges if local is None else local.read_ranges
            contents |= zip(indices, reader([ranges[index] for index in indices]), strict=True)
        return [contents[index] for index in range(len(ranges))]

    def expect(self, names: Sequence[str]) -> None:
        """Fetch the first bytes of files, or whole files, several at a time."""
        if self._whole and not constants.is_offline_mode():
            self._download(names)
        super().expect([name for name in names if self._cached(name) is None])

    def keep_whole(self, *, branch: str | None) -> None:
        """Download every file into the cache of huggingface_hub before reading it, and read it there.

        Raises:
            CheckpointError: from every method that reads, if a file does not fit onto the disk.
        """
        self._whole = True
        self._branches.append(branch or constants.DEFAULT_REVISION)

    def _local(self, name: str) -> LocalFiles | None:
        """Return the cached folder that has a file of this commit; download it first if whole files are wanted."""
        local = self._cached(name)
        if local is None and self._whole and not constants.is_offline_mode():
            self._download([name])
            local = self._cached(name)
        return local

    def _cached(self, name: str) -> LocalFiles | None:
        path = cached_file(self.repository, self._commit, self._path(name))
        return LocalFiles(str(path.parent)) if path is not None else None

    def _download(self, names: Sequence[str]) -> None:
        with self._lock:
            missing = [name for name in names if self._cached(name) is None]
            if missing:
                # Once by the name of the branch, so that the cache can resolve it without a network.
                branch = self._branches.pop() if self._branches else self._commit
                size = sum(self.size(name) for name in missing)
                paths = [self._path(name) for name in missing]
                download(self.repository, self._commit, paths, size=size, branch=branch)

    def _fill(self, name: str, start: int, sink: Sink) -> None:
        retries = RetryPolicy()
        with self._explained(name):
            while sink.missing:
                done = sink.done
                try:
                    self._continue(name, start + sink.done, sink)
                except (httpx2.TransportError, HfHubHTTPError) as error:
                    if sink.done - done >= _PROGRESS_BYTES:
                        retries.reset()
                    retries.wait_after(error)

    def _continue(self, name: str, start: int, sink: Sink) -> None:
        """Request the bytes that a sink still lacks; bytes that arrive before an error are kept."""
        address, remembered = self._address(name)
        for _ in range(_MAX_REDIRECTS):
            headers = _headers(address) | {
                "Range": f"bytes={start}-{start + sink.missing - 1}",
                "Accept-Encoding": "identity",
            }
            with get_session().stream(
                "GET", address, headers=headers, follow_redirects=False, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ) as response:
                if remembered and response.status_code in _EXPIRED:
                    self._addresses.pop(name, None)
                    address, remembered = self._address(name)
                    continue
                if response.has_redirect_location:
                    address = _redirected(address, response.headers["Location"])
                    continue
                hf_raise_for_status(response)
                to_skip = self._check(response, name, start, sink)
                self._addresses[name] = (address, time.monotonic())
                _pour(response, to_skip, sink)
            return
        raise httpx2.TooManyRedirects(f"more than {_MAX_REDIRECTS} redirects")

    def _check(self, response: httpx2.Response, name: str, start: int, sink: Sink) -> int:
        """Return how many bytes of a response precede the requested ones; refuse a response with anything else."""
        thing = f"{printable(name)} of {self.place}"
        size = self.size(name)
        encoding = response.headers.get("Content-Encoding", "identity")
        if response.status_code == 200 and encoding == "identity":
            if (start == 0 and sink.missing == size) or size <= _WHOLE_FILE_BYTES:
                return start
            raise CheckpointError(
                f"the server of {thing} ignores byte ranges and sends the whole file: download whole files instead (download)"
            )
        content_range = response.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", content_range.strip(), re.ASCII)
        if (
            response.status_code != 206
            or encoding != "identity"
            or found is None
            or int(found[1]) != start
            or not start <= int(found[2]) < start + sink.missing
            or found[3] not in ("*", str(size))
        ):
            raise CheckpointError(
                f"the server of {thing} ({size} bytes) was asked for bytes {start}-{start + sink.missing - 1} and answers with "
                f"status {response.status_code}, range '{printable(content_range)}', encoding '{printable(encoding)}'"
            )
        return 0

    def _ask_size(self, name: str) -> int:
        metadata = with_retries(
            lambda: get_hf_file_metadata(
                self._url(name),
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
                library_name="rmtscan",
                library_version=__version__,
                endpoint=constants.ENDPOINT,
            )
        )
        if metadata.size is None or metadata.commit_hash not in (None, self._commit):
            raise MissingError(
                f"the answer for {printable(name)} of {self.place} has no size or another commit: is "
                f"{printable(constants.ENDPOINT)} a Hub?"
            )
        self._addresses[name] = (_redirected(self._url(name), metadata.location), time.monotonic())
        return metadata.size

    def _address(self, name: str) -> tuple[str, bool]:
        """Return the address of a file and whether it is the remembered one, to which the Hub redirected recently."""
        address, found_at = self._addresses.get(name, ("", 0.0))
        if address and time.monotonic() - found_at < _ADDRESS_SECONDS:
            return address, True
        return self._url(name), False

    def _url(self, name: str) -> str:
        return hf_hub_url(self.repository, self._path(name), revision=self._commit, endpoint=constants.ENDPOINT)

    def _path(self, name: str) -> str:
        return "/".join(filter(None, [self._folder, self._checked(name)]))

    def _explained(self, name: str | None = None) -> AbstractContextManager[None]:
        return hub_errors(self.repository, revision=self._commit, name=name)


def _headers(address: str) -> dict[str, str]:
    """Return the headers of a request. The token is sent to the Hub only, never to the storage that it redirects to."""
    trusted = _origin(address) in (_origin(constants.ENDPOINT), ("https", "huggingface.co", None))
    if trusted:
        warn_of_clear_text(constants.ENDPOINT)
    headers = build_hf_headers(token=None if trusted else False, library_name="rmtscan", library_version=__version__)
    return dict(headers)


def _redirected(address: str, location: str) -> str:
    """Return the target of a redirect.

    Raises:
        ValueError: the target is not an address.
        CheckpointError: the target is not HTTP, or drops encryption.
    """
    target = urljoin(address, location)
    before, after = urlsplit(address).scheme, urlsplit(target).scheme
    if after not in ("http", "https") or (before == "https" and after != "https"):
        raise CheckpointError(f"{_shown_host(address)} redirects from {before} to {printable(after)}: not followed")
    return target


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port


def _shown_host(address: str) -> str:
    return printable(urlsplit(address).hostname or "the server")


def _pour(response: httpx2.Response, to_skip: int, sink: Sink) -> None:
    """Write the body of a response into a sink, without its first `to_skip` bytes.

    Raises:
        httpx2.RemoteProtocolError: the body ends too early.
    """
    for chunk in response.iter_raw():
        wanted = memoryview(chunk)[to_skip:][: sink.missing]
        to_skip = max(0, to_skip - len(chunk))
        sink.write(wanted)
        if not sink.missing:
            return
    raise httpx2.RemoteProtocolError(f"the answer ended {sink.missing} bytes too early", request=response.request)
