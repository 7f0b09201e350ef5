"""Whether a committed file is what was written: its size, its rows, its columns, and its checksum."""

from __future__ import annotations

import hashlib
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from scanner.store.checksums import SEAL, FileRecord, seal_is_broken
from scanner.store.files import StoreFiles
from scanner.store.tables import TABLES

_BLOCK_BYTES = 8 << 20


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
