"""Files of a store on any fsspec file system: listing, reading, and atomic replacement."""

import errno
import glob
import hashlib
import io
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from scanner.errors import StoreError
from scanner.store.checksums import FileRecord, HashingFile, sealed, unsealed_metadata

_SUFFIX = ".parquet"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_TEMPORARY = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}
#: Packages whose errors do not come from the file system.
_OWN_ERRORS = {"builtins", "scanner", "pyarrow", "tests"}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}

_SURROGATE = re.compile("[\ud800-\udfff]")


class StoreFiles:
    """Files of one store. Paths are relative to its root, with `/` between folders; an empty path is the root itself.

    A file under its final name is always complete. Names of unfinished files begin with a dot and end in `.tmp`, so that no
    listing of Parquet files contains them.
    """

    def __init__(self, url: str) -> None:
        """Connect to a URL.

        Raises:
            StoreError: its protocol is unknown, or needs a package that is not installed.
        """
        if not url.strip():
            raise StoreError("the URL of the store is empty: name a folder or URL with `store`")
        if "://" in url and "::" in url:
            raise StoreError(f"store {url!r} contains '::', with which fsspec chains URLs: choose a name without it")
        try:
            if "://" in url:
                self.fs, path = fsspec.core.url_to_fs(url)
            else:  # a path means itself, whatever characters are in it
                self.fs = LocalFileSystem()
                path = os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111 (resolve() would follow links)
        except Exception as error:  # packages of object stores raise many kinds without a common base class
            raise StoreError(f"store {url!r} cannot be reached: {_line(error)}") from error
        self.local = isinstance(self.fs, LocalFileSystem)
        self.root: str = path.rstrip("/") or "/"
        self.url: str = self.root if self.local else self.fs.unstrip_protocol(self.root)

    def full(self, path: str) -> str:
        """Return the path as the file system knows it."""
        return f"{self.root.rstrip('/')}/{path}".rstrip("/")

    def for_duckdb(self, path: str) -> str:
        """Return the path as a literal file name for DuckDB, which reads `*`, `?` and `[` as patterns."""
        full = self.full(path)
        return glob.escape(full if self.local else self.fs.unstrip_protocol(full))

    def is_folder(self, path: str) -> bool:
        """Return whether the folder exists (on object stores: anything below that name)."""
        with self._explained("read"):
            self.fs.invalidate_cache()
            return bool(self.fs.isdir(self.full(path)))

    def is_file(self, path: str) -> bool:
        """Return whether the file exists."""
        with self._explained("read"):
            self.fs.invalidate_cache()
            return bool(self.fs.isfile(self.full(path)))

    def names(self, folder: str, suffix: str = _SUFFIX) -> list[str]:
        """Return the sorted names of the complete files in a folder, without the suffix; none if it does not exist."""
        return [name for name, _ in self.versions(folder, suffix)]

    def versions(self, folder: str, suffix: str = _SUFFIX) -> list[tuple[str, str]]:
        """Return the same as `names`, each with a text that changes when the file is replaced."""
        found = []
        for name, info in self._list(folder):
            # Local file systems call pipes, devices and broken links "other".
            if info["type"] not in ("directory", "other") and name.endswith(suffix):
                found.append((name.removesuffix(suffix), repr(sorted((key, str(info[key])) for key in info))))
        return sorted(found)

    def folders(self, folder: str) -> list[str]:
        """Return the sorted names of the folders in a folder, without those that are being removed."""
        return sorted(name for name, info in self._list(folder) if info["type"] == "directory")

    def read_bytes(self, path: str) -> bytes | None:
        """Return the content of a file, or None if it does not exist."""
        with self._explained("read"):
            self.check_regular(path)
            try:
                content: bytes = self.fs.cat_file(self.full(path))
            except FileNotFoundError:
                return None
            return content

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes, or None if it does not exist."""
        with self._explained("read"):
            self.fs.invalidate_cache()
            try:
                info = self.fs.info(self.full(path))
            except FileNotFoundError:
                return None
            return int(info["size"]) if info["type"] == "file" else None

    @contextmanager
    def reading(self, path: str) -> Iterator[IO[bytes]]:
        """Open a file for reading.

        Raises:
            StoreError: it cannot be opened.
        """
        with self._explained("read"):
            self.check_regular(path)
            file = self.fs.open(self.full(path), "rb")
        with file:
            yield file

    def read(self, path: str) -> pa.Table | None:
        """Return the rows of one Parquet file, with its key-value metadata in the schema; None if it does not exist.

        Raises:
            StoreError: it is not a Parquet file or cannot be read.
        """
        content = self.read_bytes(path)
        if content is None:
            return None
        try:
            return pq.ParquetFile(io.BytesIO(content)).read()
        except pa.ArrowException as error:
            raise StoreError(f"{self.full(path)!r} is damaged ({error}): remove it and scan again") from error

    def read_columns(self, path: str, columns: Sequence[str]) -> pa.Table:
        """Return some columns of a Parquet file that may be large.

        Raises:
            StoreError: it is not a Parquet file or cannot be read.
        """
        with self._explained("read"):
            self.check_regular(path)
            try:
                with self.fs.open(self.full(path)) as file:
                    return pq.read_table(file, columns=list(columns))
            except pa.ArrowException as error:
                raise StoreError(f"{self.full(path)!r} is damaged ({error}): remove it and scan again") from error

    def write(
        self, path: str, table: pa.Table, metadata: Mapping[str, str], *, lasting: bool = True, rows: int | None = None
    ) -> FileRecord:
        """Replace one small Parquet file, which has its own checksum in its metadata, and return its record.

        Args:
            path: where it is written.
            table: its rows.
            metadata: key-value metadata of the file.
            lasting: False for a file that is soon read once and removed. It is compressed less, has no statistics, and is not
                flushed to the disk: after a power failure it may be damaged, which its reader must expect.
            rows: number of rows of a row group; None for the default of pyarrow.

        Raises:
            StoreError: the store is full or cannot be written.
        """
        buffer = io.BytesIO()
        options = {"compression": "zstd"} if lasting else _TEMPORARY
        described = table.replace_schema_metadata({**metadata, **unsealed_metadata()})
        pq.write_table(described, buffer, row_group_size=rows, **options)
        content = sealed(buffer.getvalue())
        self.write_bytes(path, content, lasting=lasting)
        return FileRecord(bytes=len(content), rows=table.num_rows, sha256=hashlib.sha256(content).hexdigest())

    def write_bytes(self, path: str, content: bytes, *, lasting: bool = True) -> None:
        """Replace one small file; `lasting` as for `write`.

        Raises:
            StoreError: the store is full or cannot be written.
        """
        with self._explained("written"):
            try:
                self._put(path, content, lasting=lasting)
            except FileNotFoundError:
                # Another driver of the same scan committed and removed the folder after it was created here.
                self._put(path, content, lasting=lasting)

    @contextmanager
    def replacing(self, path: str) -> Iterator[HashingFile]:
        """Open a file for writing; its content appears under `path` when the block ends without an exception.

        What is written is hashed on the way, so that nobody has to read it again.

        Raises:
            StoreError: the store is full or cannot be written.
        """
        with self._explained("written"), self._new_file(path) as file:
            yield HashingFile(file)

    def remove(self, path: str) -> None:
        """Remove a file if it exists."""
        with self._explained("written"), suppress(FileNotFoundError):
            self.fs.rm_file(self.full(path))

    def remove_folder(self, path: str) -> None:
        """Remove a folder and its content, if it exists."""
        with self._explained("written"), suppress(FileNotFoundError):
            if not self.local:
                self.fs.rm(self.full(path), recursive=True)
                return
            # Renamed first, so that a driver that lists the folder sees all of it or nothing.
            parent, _, name = path.rpartition("/")
            removed = self.full(f"{parent}/.{name}.{uuid.uuid4().hex}.tmp")
            Path(self.full(path)).rename(removed)
            shutil.rmtree(removed)

    def remove_empty_folder(self, path: str) -> None:
        """Remove a local folder if it is empty; object stores have no folders to remove."""
        if not self.local:
            return
        with self._explained("written"):
            try:
                Path(self.full(path)).rmdir()
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise

    def prepare(self, folder: str) -> None:
        """Create the store and one `folder` in it, and check that it can be written by writing and removing a file.

        Raises:
            StoreError: it cannot.
        """
        with self._explained("written"):
            self.fs.makedirs(self.full(folder), exist_ok=True)
            probe = f".probe.{uuid.uuid4().hex}.tmp"
            self._put(probe, b"rmtscan")
            self.fs.rm_file(self.full(probe))

    def _list(self, folder: str) -> list[tuple[str, dict[str, object]]]:
        """Return names and properties of the entries of a folder, without unfinished files (names that begin with a dot).

        Names that are not text (lone surrogates stand for their bytes) are left out: no result has one.
        """
        with self._explained("read"):
            self.fs.invalidate_cache()
            try:
                found = self.fs.ls(self.full(folder), detail=True)
            except FileNotFoundError:
                return []
        named = [(info["name"].rstrip("/").rsplit("/", 1)[-1], info) for info in found]
        return [(name, info) for name, info in named if not name.startswith(".") and not _SURROGATE.search(name)]

    def check_regular(self, path: str) -> None:
        """Refuse a pipe or device in place of a file: reading it would not end.

        Raises:
            StoreError: it is one.
        """
        if not self.local:
            return
        full = Path(self.full(path))
        if full.exists() and not full.is_file() and not full.is_dir():
            raise StoreError(f"{str(full)!r} is neither a file nor a folder: remove it and scan again")

    def _put(self, path: str, content: bytes, *, lasting: bool = True) -> None:
        with self._new_file(path, lasting=lasting) as file:
            file.write(content)

    @contextmanager
    def _new_file(self, path: str, *, lasting: bool = True) -> Iterator[IO[bytes]]:
        full = self.full(path)
        folder, _, name = full.rpartition("/")
        self.fs.makedirs(folder, exist_ok=True)
        if not self.local:
            # Object stores have no rename, but an uploaded object becomes visible as a whole.
            with tempfile.NamedTemporaryFile() as file:
                yield file
                file.flush()
                self.fs.put_file(file.name, full)
            return
        temporary = Path(folder) / f".{name}.{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                if lasting:
                    os.fsync(file.fileno())
            os.replace(temporary, full)  # noqa: PTH105 (tests let this call fail)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turn OSErrors of the file system into one line that says what to do."""
        try:
            yield
        except OSError as error:
            state = f"cannot be {doing}"
            if doing == "written" and error.errno in _FULL:
                state = "is full"
            elif doing == "written" and error.errno in _FORBIDDEN:
                state = "is not writable"
            advice = "choose another `store`" if doing == "written" else "check `store`"
            advice = f"free space or {advice}" if error.errno in _FULL else advice
            raise StoreError(f"store {self.url!r} {state}: {error.strerror or _line(error)}; {advice}") from error
        except Exception as error:
            # Packages of object stores (botocore, aiohttp, ...) raise many kinds of errors without a common base class.
            if type(error).__module__.partition(".")[0] in _OWN_ERRORS:
                raise
            advice = "check the connection, the credentials and `store`, and run the command again"
            raise StoreError(f"store {self.url!r} cannot be {doing}: {_line(error)}; {advice}") from error


def _line(error: Exception) -> str:
    """Describe an error in one line."""
    text = (str(error).strip().splitlines() or [""])[0][:300]
    printable = "".join(character if character.isprintable() else "?" for character in text)
    known = isinstance(error, OSError | ValueError | ImportError) and printable
    return printable if known else f"{type(error).__name__}: {printable}".rstrip(": ")
