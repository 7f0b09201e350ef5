"""The files of a local folder."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from scanner.checkpoint.names import is_plain_name, printable
from scanner.checkpoint.sources import hashes
from scanner.checkpoint.sources.ranges import ByteRange
from scanner.checkpoint.sources.versions import FileVersion, changed, settle
from scanner.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BLOCK_BYTES = 8 * 2**20


class LocalFiles:
    """The files directly inside a local folder, or the file that `source` names and those beside it.

    Nothing outside the folder is readable: names are plain names, and a symbolic link may only lead into the folder
    itself or, for a snapshot in a Hugging Face cache, into the part of the cache that belongs to the same model or is
    shared by all. The exception is a file that the user named: it may be a link to anywhere.

    One object reads one version of each file: that of `versions`, otherwise the one that it found first.

    Raises:
        ChangedError: from every method that reads, if a file is another version, or gone.
        CheckpointError: `source` does not exist; from every method, when a name is not plain, leads outside, or
            cannot be read.
    """

    def __init__(self, source: str, versions: Iterable[FileVersion] = ()) -> None:
        self._versions = {version.name: version for version in versions}
        path = Path(source)
        with _reported(source):
            # Otherwise a folder that was removed would be taken for a file, and the files beside it for its contents.
            if not path.is_dir() and not path.is_file():
                for name in self._versions:
                    raise changed(name, printable(source), "it was removed")
                raise CheckpointError(f"{printable(source)} does not exist on this machine, or cannot be read from it")
            self.named: str | None = None if path.is_dir() else path.name
        self.root = path if self.named is None else path.parent
        self.source = source
        self.place = printable(str(self.root))
        self.commit: str | None = None

    def names(self) -> tuple[str, ...]:
        """Return the names of the regular files in the folder, sorted."""
        with _reported(self.root.name):
            return tuple(sorted(path.name for path in self.root.iterdir() if path.is_file()))

    def folders(self) -> tuple[str, ...]:
        """Return the names of the folders in the folder, sorted."""
        with _reported(self.root.name):
            return tuple(sorted(path.name for path in self.root.iterdir() if path.is_dir()))

    def folder(self, name: str) -> "LocalFiles":
        """Return the files in one of the folders."""
        if not is_plain_name(name):
            raise CheckpointError(f"'{printable(name)}' is not the name of a folder inside {self.place}: not read")
        return LocalFiles(str(self.root / name))

    def neighbors(self) -> tuple[str, ...]:
        """Return the names of the folders beside this one and its own, sorted."""
        with _reported(self.root.name):
            return tuple(sorted(path.name for path in self.root.parent.iterdir() if path.is_dir()))

    def has(self, name: str) -> bool:
        """Tell whether there is a regular file of this name."""
        with _reported(name):
            return is_plain_name(name) and (self.root / name).is_file()

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return self._stat(name)[1].st_size

    def read(self, name: str, start: int, size: int) -> bytes:
        """Return `size` bytes from byte `start` on; fewer only at the end of the file."""
        with self._opened(name) as file:
            file.seek(start)
            return file.read(size)

    def read_into(self, name: str, start: int, buffer: memoryview) -> int:
        """Fill `buffer` (bytes) with the file from byte `start` on; return how many bytes were read."""
        filled = 0
        with self._opened(name) as file:
            file.seek(start)
            # One read returns at most 2 GB on Linux.
            while filled < len(buffer):
                count = file.readinto(buffer[filled:])
                if not count:
                    break
                filled += count
        return filled

    def read_ranges(self, ranges: "Sequence[ByteRange]") -> "list[NDArray[np.uint8]]":
        """Return the bytes of every range, in their order, as writable uint8 arrays.

        Raises:
            CheckpointError: a file ends before its range does.
        """
        import numpy as np

        found = []
        for wanted in ranges:
            content = np.empty(wanted.size, dtype=np.uint8)
            count = self.read_into(wanted.name, wanted.start, content.data)
            if count < wanted.size:
                raise CheckpointError(
                    f"{printable(wanted.name)} ends {wanted.size - count} bytes before the tensor that begins at byte "
                    f"{wanted.start}: the file was cut short, download it again"
                )
            found.append(content)
        return found

    def sha256(self, name: str, *, check: Callable[[], None] = lambda: None) -> str:
        """Return the SHA-256 of a file as hexadecimal digits; `check` is called between blocks and may raise, which ends it."""
        known = self._known_sha256(name)
        if known is not None:
            return known
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(_BLOCK_BYTES))
        with self._opened(name) as file:
            settle(os.fstat(file.fileno()))
            found, began = os.fstat(file.fileno()), time.time_ns()
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                check()
        hashes.remember(self.root / name, found, digest.hexdigest(), began=began)
        return digest.hexdigest()

    def identity(self, names: Iterable[str], *, check: Callable[[], None] = lambda: None) -> str:
        """Return a SHA-256 (hexadecimal) over the SHA-256 of the files, in order of their names.

        It depends on the contents of the files only, not on where they are or when they were written. `check` is called between
        blocks and may raise.
        """
        digest = hashlib.sha256()
        for name in sorted(names):
            digest.update(self.sha256(name, check=check).encode() + b"\n")
        return digest.hexdigest()

    def unhashed(self, names: Iterable[str]) -> int:
        """Return the number of bytes that `identity` has to read, because their hash is not known."""
        return sum(self.size(name) for name in names if self._known_sha256(name) is None)

    def opened(self) -> None:
        """Do nothing: no headers are cached."""

    def versions(self, names: Iterable[str]) -> tuple[FileVersion, ...]:
        """Return the versions of files that were read or hashed; other objects check against them what they read."""
        names = tuple(names)
        for name in names:
            self.size(name)
        return tuple(self._versions[name] for name in names)

    def expect(self, names: Sequence[str]) -> None:
        """Do nothing: local files need no prefetching."""

    def keep_whole(self, *, branch: str | None) -> None:
        """Do nothing: the files are local already."""

    def _known_sha256(self, name: str) -> str | None:
        """Return the SHA-256 of a file if it is known without reading the file."""
        path, found = self._stat(name)
        with _reported(name):
            return hashes.of_hub_cache(path) or hashes.known(path, found)

    def _stat(self, name: str) -> tuple[Path, os.stat_result]:
        path = self._path(name)
        with _reported(name):
            found = path.stat()
            if name not in self._versions and settle(found):
                found = path.stat()
        self._check(name, found)
        return path, found

    @contextmanager
    def _opened(self, name: str) -> Iterator[BufferedReader]:
        """Open a file for reading; it has to be the same version before and after."""
        path = self._path(name)
        with _reported(name), path.open("rb") as file:
            if name not in self._versions:
                # Otherwise a write within the same step of the clock would give the version that is noted now.
                settle(os.fstat(file.fileno()))
            self._check(name, os.fstat(file.fileno()))
            yield file
            self._check(name, os.fstat(file.fileno()))

    def _check(self, name: str, found: os.stat_result) -> None:
        now = FileVersion.of_stat(self.source, name, found)
        self._versions.setdefault(name, now).check(now, self.place)

    def _path(self, name: str) -> Path:
        shown = printable(name)
        if not is_plain_name(name):
            raise CheckpointError(f"'{shown}' is not the name of a file inside the checkpoint's folder: not read")
        path = self.root / name
        with _reported(name):
            if not path.is_file():
                if name in self._versions:
                    raise changed(name, self.place, "it was removed")
                raise CheckpointError(f"{shown} is missing from {self.place} or is not a regular file")
            if name == self.named:
                return path
            root, target = self.root.resolve(), path.resolve()
            cached = [folder for folder in root.parents if folder.name.startswith("models--")]
            shared = [folder.parent / "blobs" for folder in cached]
            homes = [root, *cached, *(folder for folder in shared if (folder / hashes.SHARED_BLOBS_MARK).is_file())]
        if not any(target.is_relative_to(home) for home in homes):
            raise CheckpointError(
                f"{shown} is a symbolic link that leaves the checkpoint's folder: put the file itself into the folder"
            )
        return path


@contextmanager
def _reported(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links, before Python 3.13
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else printable(str(error))
        raise CheckpointError(f"{printable(name)} cannot be read: {reason}") from error
