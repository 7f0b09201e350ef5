"""The interface of file sources: the files of one folder, local or remote, readable in part."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from scanner.checkpoint.names import is_plain_name
from scanner.checkpoint.sources.local_files import LocalFiles
from scanner.checkpoint.sources.memory_files import MemoryFiles, is_memory
from scanner.checkpoint.sources.ranges import ByteRange
from scanner.checkpoint.sources.versions import FileVersion, versions_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "BLOCK_BYTES",
    "SCHEME",
    "ByteRange",
    "FileVersion",
    "Files",
    "LocalFiles",
    "check_unchanged",
    "is_plain_name",
    "open_files",
]

BLOCK_BYTES = 8 * 2**20

SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", re.ASCII)
"""Start of a source that is not a local path."""


class Files(Protocol):
    """The files directly inside one folder. Every method raises CheckpointError if a file cannot be read.

    Names are plain names: nothing outside the folder is readable.

    Attributes:
        source: what `open_files` opens, on this machine or another.
        place: the folder, for messages.
        named: the one file that the user named; None for the whole folder.
        commit: the commit on the Hub that the files belong to; None if they are not from the Hub.
    """

    source: str
    place: str
    named: str | None
    commit: str | None

    def names(self) -> tuple[str, ...]:
        """Return the names of the files in the folder, sorted."""

    def folders(self) -> tuple[str, ...]:
        """Return the names of the folders in the folder, sorted."""

    def folder(self, name: str) -> "Files":
        """Return the files in one of the folders."""

    def neighbors(self) -> tuple[str, ...]:
        """Return the names of the folders beside this one and its own, sorted; none for the top of a repository."""

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name."""

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""

    def read(self, name: str, start: int, size: int) -> bytes:
        """Return `size` bytes from byte `start` on; fewer only at the end of the file.

        Meant for headers: consecutive small reads from the start of a file do not cost one request each.
        """

    def read_ranges(self, ranges: Sequence[ByteRange]) -> "list[NDArray[np.uint8]]":
        """Return the bytes of every range, in their order, as writable uint8 arrays."""

    def expect(self, names: Sequence[str]) -> None:
        """Announce that the starts of these files are read next, so that remote sources can fetch them concurrently."""

    def identity(self, names: Iterable[str], *, check: Callable[[], None] = lambda: None) -> str:
        """Return a hash (hexadecimal) of the names and contents of the files; `check` is called now and then and may raise."""

    def unhashed(self, names: Iterable[str]) -> int:
        """Return the number of bytes that `identity` has to read."""

    def opened(self) -> None:
        """Drop what was cached of headers, because the checkpoint is open."""

    def versions(self, names: Sequence[str]) -> tuple[FileVersion, ...]:
        """Return the versions of the files that `identity` hashed; none if the source cannot change."""

    def keep_whole(self, *, branch: str | None) -> None:
        """Download whole files to this machine before reading them; `branch` is the branch or tag that the user named."""


def open_files(source: str, versions: Iterable[FileVersion] = ()) -> Files:
    """Return the files of a checkpoint by its `Checkpoint.source`.

    Args:
        source: `Checkpoint.source`.
        versions: `Checkpoint.versions`; reading a file of which another version is there raises ChangedError.

    Raises:
        ChangedError: the source was removed.
        CheckpointError: the source does not exist.
    """
    if is_memory(source):
        return MemoryFiles(source)
    scheme = SCHEME.match(source)
    if scheme is None:
        return LocalFiles(source, versions_of(source, versions))
    # Imported here, so that local files can be listed without importing an HTTP client.
    if scheme[1].lower() == "hf":
        from scanner.checkpoint.sources.hub_files import hub_files

        return hub_files(source)
    from scanner.checkpoint.sources.fsspec_files import FsspecFiles

    return FsspecFiles(source, versions_of(source, versions))


def check_unchanged(versions: Sequence[FileVersion]) -> None:
    """Compare files with the versions that were hashed.

    Raises:
        ChangedError: a file is another version, or gone.
        CheckpointError: a remote file cannot be looked up.
    """
    for source in dict.fromkeys(version.source for version in versions):
        files = open_files(source, versions)
        for version in versions_of(source, versions):
            files.size(version.name)
