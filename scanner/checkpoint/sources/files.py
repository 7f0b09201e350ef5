"""Where the bytes of a checkpoint come from: named files that can be read in part, wherever they lie."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from scanner.checkpoint.names import is_plain_name
from scanner.checkpoint.sources.local_files import LocalFiles
from scanner.checkpoint.sources.ranges import ByteRange

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BLOCK_BYTES", "SCHEME", "ByteRange", "Files", "LocalFiles", "is_plain_name", "open_files"]

BLOCK_BYTES = 8 * 2**20

SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", re.ASCII)
"""How a source that is not a local path begins."""


class Files(Protocol):
    """The files directly inside one folder. Every method raises CheckpointError if a file cannot be had.

    Names are plain names: nothing outside the folder is readable. `source` is what `open_files` makes the same files of
    on another machine, `place` says in messages where they are, `named` is the one file that the user named (None: the
    whole folder), `commit` the commit of the Hub that they belong to (None: not from the Hub).
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

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name."""

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""

    def read(self, name: str, start: int, size: int) -> bytes:
        """Return `size` bytes from byte `start` on; fewer only where the file ends.

        For headers: small reads that follow one another from the beginning of a file do not cost a request each.
        """

    def read_ranges(self, ranges: Sequence[ByteRange]) -> "list[NDArray[np.uint8]]":
        """Return the bytes of every range, in their order, as writable uint8 arrays."""

    def expect(self, names: Sequence[str]) -> None:
        """Say that the beginnings of these files are read next: where each costs a request, all are fetched at once."""

    def identity(self, names: Iterable[str]) -> str:
        """Return a hash (hexadecimal) of what the files hold; all names count."""

    def keep_whole(self, *, branch: str | None) -> None:
        """Bring every file whole to this machine before any of it is read; `branch` is the one that was asked for."""


def open_files(source: str) -> Files:
    """Return the files of a checkpoint by its `Checkpoint.source`.

    Raises:
        CheckpointError: there is no such source.
    """
    scheme = SCHEME.match(source)
    if scheme is None:
        return LocalFiles(source)
    # Imported here: most scans are of one kind, and describing local files must not wait for an HTTP client.
    if scheme[1].lower() == "hf":
        from scanner.checkpoint.sources.hub_files import hub_files

        return hub_files(source)
    from scanner.checkpoint.sources.fsspec_files import FsspecFiles

    return FsspecFiles(source)
