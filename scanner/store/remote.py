"""Files of an object store as DuckDB reads them: each is looked up once, small ones are kept, and failed reads are repeated."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

from fsspec import AbstractFileSystem

if TYPE_CHECKING:
    from scanner.store.files import StoreFiles

#: Files up to this size are read at once.
_SMALL = 1 << 20
#: Bytes of small files that are kept in memory.
_KEPT = 64 << 20
#: Bytes that are read ahead in larger ones: about what DuckDB reads of a column of one row group.
_BLOCK = 1 << 20


class RemoteFiles(AbstractFileSystem):  # type: ignore[misc]
    """What one connection of DuckDB reads. Committed files do not change; for changed ones a new connection is made."""

    cachable = False

    def __init__(self, files: StoreFiles) -> None:
        super().__init__()
        self.protocol = files.fs.protocol
        self._files = files
        self._infos: dict[str, dict[str, Any]] = {}
        self._contents: dict[str, bytes] = {}
        self._kept = 0

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Return size and type of a file.

        Raises:
            FileNotFoundError: there is none.
            StoreError: the store cannot be read.
        """
        if path not in self._infos:
            found = self._files.info_of(path)
            if found is None:
                raise FileNotFoundError(path)
            self._infos[path] = found
        return self._infos[path]

    def modified(self, path: str) -> datetime:
        """Return one time for all files: they do not change."""
        return datetime(2000, 1, 1, tzinfo=UTC)

    def glob(self, path: str, **options: Any) -> list[str]:
        """Return the file of this literal name; characters of patterns are escaped."""
        literal = path.replace("[*]", "*").replace("[?]", "?").replace("[[]", "[")
        return [literal] if self.exists(literal) else []

    def open(self, path: str, mode: str = "rb", **options: Any) -> IO[bytes]:
        """Open a file for reading.

        Raises:
            FileNotFoundError: there is none.
            StoreError: the store cannot be read.
        """
        if "r" not in mode:
            raise PermissionError(f"{path!r}: files of a store are only read")
        if path in self._contents:
            return io.BytesIO(self._contents[path])
        size = int(self.info(path)["size"])
        if size > _SMALL:
            return self._files.open_remote(path, _BLOCK)
        content = self._files.content_of(path)
        if content is None:
            raise FileNotFoundError(path)
        if self._kept + len(content) <= _KEPT:
            self._kept += len(content)
            self._contents[path] = content
        return io.BytesIO(content)
