"""Checksums: the record of a file of a store as it was written, and seals inside of small files."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import IO, Any

from scanner.store.tables import TABLES, to_json

SEAL = "rmtscan.sha256"
"""Key in the metadata of a small Parquet file: the SHA-256 of the file, computed with `_NOT_YET` in its place."""
_NOT_YET = hashlib.sha256(b"the checksum of this file").hexdigest()

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
