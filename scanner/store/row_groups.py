"""Parquet files in row groups of one size, written from tables of any size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scanner.store.checksums import HashingFile

ROW_GROUP = 250_000
"""Rows of a row group: large enough to compress and scan well, small enough that queries skip what they do not need."""
SMALLEST_ROW_GROUP = 100_000
"""The last group of a file is not smaller than this, unless the file is."""


def write_row_groups(
    sink: IO[bytes] | HashingFile, schema: pa.Schema, parts: Iterable[pa.Table], **options: Any
) -> int:
    """Write tables one after another into a Parquet file, a row group at a time, and return the number of rows.

    Args:
        sink: where the file is written.
        schema: of the file, with its metadata.
        parts: tables of this schema.
        options: of `pyarrow.parquet.ParquetWriter`.
    """
    waiting: list[pa.Table] = []
    rows = written = 0
    with pq.ParquetWriter(sink, schema, compression="zstd", **options) as writer:
        for part in parts:
            waiting.append(part)
            rows += part.num_rows
            while rows - written >= ROW_GROUP + SMALLEST_ROW_GROUP:
                together = pa.concat_tables(waiting)
                writer.write_table(together.slice(0, ROW_GROUP), row_group_size=ROW_GROUP)
                waiting = [together.slice(ROW_GROUP)]
                written += ROW_GROUP
        if rows > written or not rows:
            last = pa.concat_tables(waiting) if waiting else schema.empty_table()
            writer.write_table(last, row_group_size=ROW_GROUP + SMALLEST_ROW_GROUP)
    return rows
