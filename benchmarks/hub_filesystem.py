"""The files of a commit on the Hub, read through `huggingface_hub.HfFileSystem`: the alternative to `HubFiles`.

`install()` makes `open_files` use it. It lists, sizes, and reads through the fsspec interface, as `FsspecFiles` does for
object stores. The lookup of revisions, the local cache, and the error messages are those of `HubFiles`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from huggingface_hub import HfFileSystem, constants

from scanner.checkpoint.names import printable
from scanner.checkpoint.sources import hub_files
from scanner.checkpoint.sources.hub_cache import cached_listing, cached_snapshot
from scanner.checkpoint.sources.ranges import Sink
from scanner.checkpoint.sources.retry import with_retries
from scanner.errors import CheckpointError, MissingError

BLOCK_BYTES = 64 * 2**20
"""The size of one request in `FsspecFiles`."""


class HfFileSystemFiles(hub_files.HubFiles):
    """`Files` of a source `hf://org/name@commit[/path]` over HfFileSystem, without a second layer of retries."""

    cache_type = "none"
    """fsspec's default is "readahead": every read takes 5 MiB more than it needs."""
    retries = False
    """Whether calls that HfFileSystem has given up are made again, as `FsspecFiles` does for every store."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._store = HfFileSystem(endpoint=constants.ENDPOINT, skip_instance_cache=True)
        self._top = f"{self.repository}@{self._commit}"

    def size(self, name: str) -> int:
        local = self._cached(name)
        if local is not None:
            return local.size(name)
        listed = self._tree.get(self._path(name)) if self._tree is not None else None
        if listed is not None:
            return listed
        with self._explained(name), _unwrapped():
            size = self._call(self._store.info, f"{self._top}/{self._path(name)}").get("size")
        if not isinstance(size, int) or size < 0:
            raise CheckpointError(f"{printable(name)}: {self.place} does not report its size")
        return size

    def _listing(self) -> Any:
        if self._tree is None:
            tree = cached_listing(self.repository, self._commit)
            if tree is None and constants.is_offline_mode():
                tree = cached_snapshot(self.repository, self._commit)
            if tree is None:
                with self._explained(), _unwrapped():
                    found = self._call(self._store.find, self._top, detail=True)
                tree = {str(path).removeprefix(f"{self._top}/"): entry["size"] for path, entry in found.items()}
            self._tree = tree
        return self._tree

    def _fill(self, name: str, start: int, sink: Sink) -> None:
        path = f"{self._top}/{self._path(name)}"
        while sink.missing:
            begin, count = start + sink.done, min(sink.missing, BLOCK_BYTES)
            with self._explained(name), _unwrapped():
                content = self._call(
                    self._store.cat_file, path, start=begin, end=begin + count, cache_type=self.cache_type
                )
            if len(content) != count:
                raise CheckpointError(
                    f"{printable(name)} of {self.place}: asked for {count} bytes from byte {begin} and got {len(content)}"
                )
            sink.write(content)

    def _call(self, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        call = partial(method, *arguments, **named)
        return with_retries(call) if self.retries else call()


class FsspecPathFiles(HfFileSystemFiles):
    """The same as `FsspecFiles` would read it unchanged: fsspec's default cache, and another layer of retries."""

    cache_type = "readahead"
    retries = True


@contextmanager
def _unwrapped() -> Iterator[None]:
    # HfFileSystem reports every missing thing as FileNotFoundError and keeps what it was as the cause.
    try:
        yield
    except FileNotFoundError as error:
        if isinstance(error.__cause__, Exception):
            raise error.__cause__ from error
        raise MissingError(f"{printable(str(error))} is not there") from error


def install(kind: type[hub_files.HubFiles]) -> None:
    """Make `open_files` return files of this kind for the Hub."""
    hub_files.HubFiles = kind  # type: ignore[misc]
    hub_files.hub_files.cache_clear()
