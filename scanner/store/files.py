"""Files of a store on any fsspec file system: listing, reading, and atomic replacement."""

import copy
import errno
import fcntl
import glob
import hashlib
import io
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TypeVar

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
_BUSY = {errno.EBUSY, errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, getattr(errno, "EREMOTEIO", errno.EIO)}
#: Stores of objects, which have no folders to create.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
#: Seconds for which a store that has answered before may be gone or busy until an operation fails.
PATIENCE = 300.0
#: The same for a store that has not answered yet: its address may be wrong.
FIRST_PATIENCE = 15.0
_TRANSIENT = {
    ("botocore.exceptions", "HTTPClientError"),
    ("botocore.exceptions", "ConnectionError"),
    ("aiohttp.client_exceptions", "ClientConnectionError"),
    ("aiohttp.client_exceptions", "ClientPayloadError"),
}
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0

Answer = TypeVar("Answer")

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
                self.fs, path = fsspec.core.url_to_fs(url, **_options(url))
            else:  # a path means itself, whatever characters are in it
                self.fs = LocalFileSystem()
                path = os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111 (resolve() would follow links)
        except Exception as error:  # packages of object stores raise many kinds without a common base class
            raise StoreError(f"store {url!r} cannot be reached: {_line(error)}") from error
        self.local = isinstance(self.fs, LocalFileSystem)
        protocols = {self.fs.protocol} if isinstance(self.fs.protocol, str) else {*self.fs.protocol}
        self._has_folders = not protocols & _OBJECT_STORES
        self._in_memory = "memory" in protocols
        if "s3" in protocols:
            self.fs.retries = (
                1  # requests are repeated here, for a limited time; s3fs would multiply that by its own tries
            )
        self._answered = False
        self._patience: float | None = None
        self.memory: dict[str, tuple[object, Any]] = {}
        """What other modules have read from files, with the versions of these files."""
        self.root: str = path.rstrip("/") or "/"
        self.url: str = self.root if self.local else self.fs.unstrip_protocol(self.root)

    def with_patience(self, seconds: float) -> "StoreFiles":
        """Return the same files for what is soon out of date: operations fail after this time if the store is gone or busy."""
        found = copy.copy(self)
        found._patience = seconds
        return found

    def full(self, path: str) -> str:
        """Return the path as the file system knows it."""
        return f"{self.root.rstrip('/')}/{path}".rstrip("/")

    def for_duckdb(self, path: str) -> str:
        """Return the path as a literal file name for DuckDB, which reads `*`, `?` and `[` as patterns."""
        full = self.full(path)
        return glob.escape(full if self.local else self.fs.unstrip_protocol(full))

    def is_folder(self, path: str) -> bool:
        """Return whether the folder exists (on object stores: anything below that name)."""
        return bool(self._asked("read", lambda: self.fs.isdir(self.full(path))))

    def is_file(self, path: str) -> bool:
        """Return whether the file exists."""
        if self.local:
            return bool(self._asked("read", lambda: self.fs.isfile(self.full(path))))
        # `isfile` of fsspec says of a store that is busy that the file does not exist.
        info = self.info_of(self.full(path))
        return info is not None and info["type"] == "file"

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

    def entries(self, folder: str, suffix: str = _SUFFIX) -> list[tuple[str, datetime | None]]:
        """Return the same as `names`, each with the time of its last change; None if the file system does not tell."""
        listed = self._list(folder)
        return sorted(
            (name.removesuffix(suffix), _time_in(info))
            for name, info in listed
            if info["type"] != "directory" and name.endswith(suffix)
        )

    def folders(self, folder: str) -> list[str]:
        """Return the sorted names of the folders in a folder, without those that are being removed."""
        return sorted(name for name, info in self._list(folder) if info["type"] == "directory")

    def read_bytes(self, path: str) -> bytes | None:
        """Return the content of a file, or None if it does not exist."""
        return self.content_of(self.full(path))

    def content_of(self, full: str) -> bytes | None:
        """Return the same as `read_bytes` for a path as the file system knows it."""

        def read() -> bytes | None:
            self._check_regular(full)
            try:
                content: bytes = self.fs.cat_file(full)
            except FileNotFoundError:
                return None
            return content

        return self._asked("read", read)

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes, or None if it does not exist."""
        info = self.info_of(self.full(path))
        return int(info["size"]) if info is not None and info["type"] == "file" else None

    def modified(self, path: str) -> datetime | None:
        """Return when a file was written, or None if it does not exist or the file system does not say."""
        info = self.info_of(self.full(path))
        return None if info is None else _time_in(info)

    def info_of(self, full: str) -> dict[str, Any] | None:
        """Return what fsspec says of a path as the file system knows it; None if it does not exist."""

        def ask() -> dict[str, Any] | None:
            try:
                found: dict[str, Any] = self.fs.info(full)
            except FileNotFoundError:
                return None
            return found

        return self._asked("read", ask)

    @contextmanager
    def reading(self, path: str) -> Iterator[IO[bytes]]:
        """Open a file for reading.

        Raises:
            StoreError: it cannot be opened, or, on an object store, not be read on.
        """
        with self._explained("read"):
            self.check_regular(path)
            file = self.fs.open(self.full(path), "rb") if self.local else self.open_remote(self.full(path))
        with file:
            yield file

    def open_remote(self, full: str, block_bytes: int | None = None) -> IO[bytes]:
        """Open a file of an object store by its path as the file system knows it; reads are repeated like all requests.

        Raises:
            StoreError: it does not exist, or the store cannot be read.
        """
        options = {} if block_bytes is None else {"block_size": block_bytes}
        file = self._asked("read", lambda: self.fs.open(full, "rb", **options))
        return io.BufferedReader(_RemoteFile(file, self._asked), 1 << 16)

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
        with self._explained("read"), self.reading(path) as file:
            try:
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

        def put() -> None:
            try:
                self._put(path, content, lasting=lasting)
            except FileNotFoundError:
                # Another driver of the same scan committed and removed the folder after it was created here.
                self._put(path, content, lasting=lasting)

        self._asked("written", put)

    def create(self, path: str, content: bytes) -> bool:
        """Write a small file unless it exists, in one atomic step: of several processes that try, one succeeds.

        On a local disk the complete file gets its name by a hard link, on S3 by a conditional request (`If-None-Match: *`). Other
        stores are as atomic as the mode `create` of their fsspec file system.

        Returns:
            Whether this call created the file.

        Raises:
            StoreError: the store is full or cannot be written.
        """

        def create() -> bool:
            if self.local:
                return self._create_locally(path, content)
            try:
                self.fs.pipe_file(self.full(path), content, mode="create")
            except FileExistsError:
                # A repeated request may meet what the first one wrote, whose answer was lost.
                self.fs.invalidate_cache()
                try:
                    return bool(self.fs.cat_file(self.full(path)) == content)
                except FileNotFoundError:  # whoever created it has removed it in the meantime
                    return False
            return True

        return self._asked("written", create)

    def swap(self, path: str, before: bytes, after: bytes | None) -> bool:
        """Replace a small file that has the content `before`, or remove it (None), in one atomic step; compare and swap.

        On a local disk the step is protected by a lock, on S3 by a conditional request (`If-Match`). Elsewhere there is a moment
        between comparison and replacement.

        Returns:
            Whether the file had this content, and was replaced.

        Raises:
            StoreError: the store is full or cannot be written.
        """
        full, requests = self.full(path), 0

        def swap() -> bool:
            nonlocal requests
            if self.local:
                return self._swap_locally(path, before, after)
            try:
                tag = self.fs.info(full).get("ETag")
                found = self.fs.cat_file(full)
                if found != before:
                    return bool(
                        requests and found == after
                    )  # as in `create`: the answer to an earlier request was lost
                requests += 1
                if after is None:
                    self.fs.rm_file(full)
                else:
                    self.fs.pipe_file(full, after, **({"IfMatch": tag} if tag else {}))
            except FileNotFoundError:
                return bool(requests and after is None)
            except OSError as error:
                if (
                    error.errno != errno.EINVAL
                ):  # what s3fs makes of the status 412; after 409 and 503 it is asked again
                    raise
                self.fs.invalidate_cache()
                return bool(self.fs.cat_file(full) == after)
            return True

        return self._asked("written", swap)

    def _create_locally(self, path: str, content: bytes) -> bool:
        target = Path(self.full(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def _swap_locally(self, path: str, before: bytes, after: bytes | None) -> bool:
        target = Path(self.full(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        name = target.with_name(f".{target.name}.lock")
        with _locked(name):
            try:
                if target.read_bytes() != before:
                    return False
            except FileNotFoundError:
                name.unlink()
                return False
            if after is None:
                target.unlink()
                name.unlink()
            else:
                self._put(path, after)
            return True

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

        def remove() -> None:
            with suppress(FileNotFoundError):
                self.fs.rm_file(self.full(path))

        self._asked("written", remove)

    def remove_folder(self, path: str) -> None:
        """Remove a folder and its content, if it exists."""

        def remove() -> None:
            with suppress(FileNotFoundError):
                self.fs.rm(self.full(path), recursive=True)

        if self._in_memory:
            self._remove_in_memory(self.full(path))
            return
        if not self.local:
            self._asked("written", remove)
            return
        with self._explained("written"), suppress(FileNotFoundError):
            # Renamed first, so that a driver that lists the folder sees all of it or nothing.
            parent, _, name = path.rpartition("/")
            removed = self.full(f"{parent}/.{name}.{uuid.uuid4().hex}.tmp")
            Path(self.full(path)).rename(removed)
            shutil.rmtree(removed)

    def _remove_in_memory(self, full: str) -> None:
        """Remove a folder of fsspec's memory file system, whose own way takes time that grows with the square of the files."""
        inside = f"{full}/"
        for name in [name for name in self.fs.store if name.startswith(inside)]:
            self.fs.store.pop(name, None)
        self.fs.pseudo_dirs[:] = [name for name in self.fs.pseudo_dirs if name != full and not name.startswith(inside)]

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
        probe = f".probe.{uuid.uuid4().hex}.tmp"

        def prepare() -> None:
            self.fs.makedirs(self.full(folder), exist_ok=True)
            self._put(probe, b"rmtscan")

        self._asked("written", prepare)
        self.remove(probe)

    def _list(self, folder: str) -> list[tuple[str, dict[str, object]]]:
        """Return names and properties of the entries of a folder, without unfinished files (names that begin with a dot).

        Names that are not text (lone surrogates stand for their bytes) are left out: no result has one.
        """

        def ask() -> list[dict[str, Any]]:
            try:
                found: list[dict[str, Any]] = self.fs.ls(self.full(folder), detail=True)
            except FileNotFoundError:
                return []
            return found

        found = self._asked("read", ask)
        named = [(info["name"].rstrip("/").rsplit("/", 1)[-1], info) for info in found]
        return [(name, info) for name, info in named if not name.startswith(".") and not _SURROGATE.search(name)]

    def check_regular(self, path: str) -> None:
        """Refuse a pipe or device in place of a file: reading it would not end.

        Raises:
            StoreError: it is one.
        """
        self._check_regular(self.full(path))

    def _check_regular(self, full: str) -> None:
        if not self.local:
            return
        place = Path(full)
        if place.exists() and not place.is_file() and not place.is_dir():
            raise StoreError(f"{full!r} is neither a file nor a folder: remove it and scan again")

    def _put(self, path: str, content: bytes, *, lasting: bool = True) -> None:
        if not self.local:
            if self._has_folders:
                self.fs.makedirs(self.full(path).rpartition("/")[0], exist_ok=True)
            self.fs.pipe_file(self.full(path), content)
            return
        with self._new_file(path, lasting=lasting) as file:
            file.write(content)

    @contextmanager
    def _new_file(self, path: str, *, lasting: bool = True) -> Iterator[IO[bytes]]:
        full = self.full(path)
        folder, _, name = full.rpartition("/")
        if self._has_folders:
            self.fs.makedirs(folder, exist_ok=True)
        if self._in_memory:
            buffer = io.BytesIO()
            yield buffer
            self._asked("written", lambda: self.fs.pipe_file(full, buffer.getvalue()))
            return
        if not self.local:
            # Object stores have no rename, but an uploaded object becomes visible as a whole.
            with tempfile.NamedTemporaryFile() as file:
                yield file
                file.flush()
                self._asked("written", lambda: self.fs.put_file(file.name, full))
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

    def _asked(self, doing: str, call: Callable[[], Answer]) -> Answer:
        """Return what a call returns. On an object store it is repeated, with growing pauses, while the store is gone or busy.

        Raises:
            StoreError: it fails, in one line that says what to do.
        """
        with self._explained(doing):
            if self.local:
                return call()
            patience = PATIENCE if self._answered else FIRST_PATIENCE
            if self._patience is not None:
                patience = self._patience
            deadline, pause = time.monotonic() + patience, _FIRST_PAUSE
            while True:
                try:
                    self.fs.invalidate_cache()
                    answer = call()
                except Exception as error:
                    if not _may_pass(error) or time.monotonic() + pause > deadline:
                        raise
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                else:
                    self._answered = True
                    return answer

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
            if isinstance(error, PermissionError) and not self.local:
                advice = f"check the credentials and what they allow, or {advice}"
            raise StoreError(f"store {self.url!r} {state}: {error.strerror or _line(error)}; {advice}") from error
        except Exception as error:
            found = foreign_error(self.url, error, doing)
            if found is None:
                raise
            raise found from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a file that is created for it; who has the lock may remove the file."""
    while True:
        with path.open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, also by the death of the process
            try:
                current = os.path.samestat(os.fstat(lock.fileno()), path.stat())
            except FileNotFoundError:
                current = False
            if current:  # otherwise it was removed by the process that had the lock before, and locks nothing
                yield
                return


def foreign_error(url: str, error: Exception, doing: str = "read") -> StoreError | None:
    """Return what to raise for an error of a package that reaches a store; None for an error of our own code.

    Packages of object stores (botocore, aiohttp, ...) raise many kinds of errors without a common base class.
    """
    if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] in _OWN_ERRORS:
        return None
    store = f"store {url!r}" if url else "the store"
    advice = "check the connection, the credentials and `store`, and run the command again"
    return StoreError(f"{store} cannot be {doing}: {_line(error)}; {advice}")


class _RemoteFile(io.RawIOBase):
    """A file of an object store whose reads are repeated while the store is gone or busy, and fail with a `StoreError`."""

    def __init__(self, file: Any, asked: Callable[[str, Callable[[], bytes]], bytes]) -> None:
        self._file, self._asked = file, asked

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        at = self._file.tell()

        def read() -> bytes:
            self._file.seek(at)
            content: bytes = self._file.read(len(buffer))
            return content

        content = self._asked("read", read)
        buffer[: len(content)] = content
        return len(content)


def _options(url: str) -> dict[str, Any]:
    """Return options of the client of a store: fewer tries of its own, unless fsspec's configuration says something else."""
    protocol = url.partition("://")[0]
    if protocol not in ("s3", "s3a") or "config_kwargs" in fsspec.config.conf.get(protocol, {}):
        return {}
    return {"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 1}, "read_timeout": 60}}


def _may_pass(error: BaseException) -> bool:
    """Whether the same request to a store may succeed later."""
    seen: BaseException | None = error
    while isinstance(seen, Exception):
        if isinstance(seen, ConnectionError | TimeoutError) or (isinstance(seen, OSError) and seen.errno in _BUSY):
            return True
        if any((kind.__module__, kind.__name__) in _TRANSIENT for kind in type(seen).__mro__):
            return True
        answer = getattr(seen, "response", None)  # botocore
        about = answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}
        if about.get("HTTPStatusCode") in _TRANSIENT_STATUS:
            return True
        if isinstance(seen, FileNotFoundError | PermissionError):
            return False
        seen = seen.__cause__
    return False


def _time_in(info: Mapping[str, Any]) -> datetime | None:
    """Return the time of the last change in what fsspec says of a file; file systems call it differently."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        found = info.get(key)
        if isinstance(found, int | float):
            return datetime.fromtimestamp(found, UTC)
        if isinstance(found, datetime):
            return found if found.tzinfo else found.replace(tzinfo=UTC)
    return None


def _line(error: Exception) -> str:
    """Describe an error in one line."""
    text = (str(error).strip().splitlines() or [""])[0][:300]
    printable = "".join(character if character.isprintable() else "?" for character in text)
    known = isinstance(error, OSError | ValueError | ImportError) and printable
    return printable if known else f"{type(error).__name__}: {printable}".rstrip(": ")
