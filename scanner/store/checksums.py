"""Checksums: what a file of a store was when it was written, and whether it still is."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scanner.store.tables import TABLES, to_json

if TYPE_CHECKING:
    from scanner.store.files import StoreFiles

SEAL = "rmtscan.sha256"
"""Key in the metadata of a small Parquet file: the SHA-256 of the file, computed with `_NOT_YET` in its place."""
_NOT_YET = hashlib.sha256(b"the checksum of this file").hexdigest()

_BLOCK_BYTES = 8 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAGIC = b"RMTSHA25"


def is_safe_id(text: object) -> bool:
    """Whether the value can be the id of a result: letters, digits, `.`, `_`, `-`, so that it is safe as a file name."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def printable(text: str) -> str:
    """Return at most 200 characters of a text that anybody may have written, with `?` for control characters."""
    return "".join(character if character.isprintable() else "?" for character in text[:200])


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A committed file as it was written."""

    bytes: int
    rows: int
    sha256: str


def records_as_json(records: Mapping[str, FileRecord]) -> str:
    """Return the value of a column `files`: path in the store -> record."""
    return to_json({path: asdict(record) for path, record in records.items()})


def records_in(text: object) -> dict[str, FileRecord] | None:
    """Return the records in a column `files`; None if there are none, because an earlier version wrote the row.

    Raises:
        ValueError: the value is of another kind, or names something else than a file of a table.
    """
    if text is None:
        return None
    try:
        found = json.loads(str(text))
        if not isinstance(found, dict):
            raise ValueError("not an object")
        return {_path(path): record_in(record) for path, record in found.items()}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"column `files` is not a list of files: {type(error).__name__}") from None


def _path(path: str) -> str:
    table, _, file = path.partition("/")
    if table not in TABLES or not file.endswith(".parquet") or not is_safe_id(file.removesuffix(".parquet")):
        raise ValueError("not a file of a table")
    return path


def record_in(values: Any) -> FileRecord:
    """Return the record in its form as JSON.

    Raises:
        ValueError: it is none; also KeyError and TypeError.
    """
    size, rows, digest = values["bytes"], values["rows"], values["sha256"]
    if type(size) is not int or type(rows) is not int or size < 0 or rows < 0 or not _SHA256.fullmatch(digest):
        raise ValueError("not a record")
    return FileRecord(bytes=size, rows=rows, sha256=digest)


class HashingFile(io.RawIOBase):
    """A file that is written from its start to its end, and hashed on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._size = 0

    def writable(self) -> bool:
        """Return true."""
        return True

    def write(self, content: Any) -> int:
        """Write and hash bytes."""
        self._digest.update(content)
        size = memoryview(content).nbytes
        self._file.write(content)
        self._size += size
        return size

    def tell(self) -> int:
        """Return the number of bytes so far."""
        return self._size

    def record(self, rows: int) -> FileRecord:
        """Describe what has been written."""
        return FileRecord(bytes=self._size, rows=rows, sha256=self._digest.hexdigest())


def unsealed_metadata() -> dict[str, str]:
    """Return the metadata that `sealed` completes; it has to be the last entry of the metadata of the file."""
    return {SEAL: _NOT_YET}


def sealed(content: bytes) -> bytes:
    """Return a Parquet file that was written with `unsealed_metadata`, with its checksum in its metadata."""
    return _with_seal(content, _NOT_YET, hashlib.sha256(content).hexdigest())


def _with_seal(content: bytes, old: str, new: str) -> bytes:
    before, found, after = content.rpartition(old.encode())
    return before + new.encode() + after if found else content


def seal_is_broken(content: bytes, seal: str) -> bool:
    """Whether a file is not what was sealed."""
    return hashlib.sha256(_with_seal(content, seal, _NOT_YET)).hexdigest() != seal


def with_checksum(content: bytes) -> bytes:
    """Return bytes with their checksum behind them."""
    return content + hashlib.sha256(content).digest() + _MAGIC


def checked(content: bytes | None) -> bytes | None:
    """Return the bytes that `with_checksum` was given; None if they are damaged. Those of earlier versions have no checksum."""
    if content is None or not content.endswith(_MAGIC):
        return content
    body, digest = content[:-40], content[-40:-8]
    return body if hashlib.sha256(body).digest() == digest else None


def damage(
    files: StoreFiles, path: str, record: FileRecord | None, *, rows: int | None = None, deep: bool = True
) -> str | None:
    """Compare a Parquet file with its record.

    Args:
        files: the store.
        path: the file.
        record: what was written; None: not known, so a seal in the file and its readability count.
        rows: number of rows that another file tells; None: not known.
        deep: also read all of it; otherwise only its size and footer are compared.

    Returns:
        What is wrong with it, as in "is missing"; None if it is whole.

    Raises:
        StoreError: the store cannot be read.
    """
    size = files.size(path)
    if size is None:
        return "is missing"
    if record is not None and size != record.bytes:
        return f"has {size} bytes instead of {record.bytes}"
    try:
        with files.reading(path) as file:
            parquet = pq.ParquetFile(file)
            wanted = rows if record is None else record.rows
            if wanted is not None and parquet.metadata.num_rows != wanted:
                return f"has {parquet.metadata.num_rows} rows instead of {wanted}"
            wrong = _wrong_type(path, parquet.schema_arrow)
            if wrong:
                return wrong
            seal = (parquet.metadata.metadata or {}).get(SEAL.encode(), b"").decode("ascii", "replace")
            if not deep:
                return None
            file.seek(0)
            if record is not None:
                return None if _sha256(file) == record.sha256 else "has another checksum than when it was written"
            if seal:
                return "has another checksum than when it was written" if seal_is_broken(file.read(), seal) else None
            for _ in parquet.iter_batches():
                pass
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"cannot be read as Parquet ({_first_line(error)})"
    return None


def _wrong_type(path: str, schema: pa.Schema) -> str | None:
    """Say which column has another type than its table: it would change the type of that column in all answers."""
    for field in TABLES[path.partition("/")[0]].schema:
        found = schema.field(field.name).type if field.name in schema.names else field.type
        if found != field.type:
            return f"has a column {field.name} of type {found} instead of {field.type}"
    return None


def has_checksum(files: StoreFiles, path: str) -> bool:
    """Whether a small Parquet file has its checksum in its metadata."""
    try:
        with files.reading(path) as file:
            return SEAL.encode() in (pq.ParquetFile(file).metadata.metadata or {})
    except (pa.ArrowException, OSError, ValueError):
        return False


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return "".join(character if character.isprintable() else "?" for character in text)
