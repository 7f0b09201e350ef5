"""Rows of several tables that belong together: staged piece by piece, then committed as one file a table.

A piece lies in STORE/staging-comparisons/<id>/<table>/<hash of key>.parquet; the file of the last table says that the piece
is complete. The row of the committing table is written last, so readers see all of it or nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from scanner.errors import StoreError
from scanner.store.files import StoreFiles
from scanner.store.tables import SCHEMAS, TABLES, complete, conform, described, file_metadata
from scanner.store.writer import ROW_GROUP, is_scan_id, key_hash

_READERS = 16
_ORDER = ("stack", "layer", "role", "base_tensor", "tensor", "head", "expert", "k")


class Batch:
    """One result of many pieces: a comparison of many matrix pairs, say. The pieces survive a killed driver."""

    def __init__(
        self, files: StoreFiles, batch_id: str, *, tables: Sequence[str], row_of: str, method: Mapping[str, object]
    ) -> None:
        """`tables` get the pieces' rows, `row_of` the one row that commits them; ValueError for an id that is no safe file name."""
        if not is_scan_id(batch_id):
            raise ValueError(f"id {batch_id!r}: letters, digits, '.', '_' and '-' only, at most 128")
        self.batch_id = batch_id
        self._files, self._tables, self._row_of = files, tuple(tables), row_of
        self._method = dict(method)
        self._folder = f"staging-{row_of}/{batch_id}"

    @property
    def committed(self) -> bool:
        """Whether the result is in the store."""
        return self._files.is_file(f"{self._row_of}/{self.batch_id}.parquet")

    def staged(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys whose piece is there whole."""
        names = set(self._files.names(f"{self._folder}/{self._tables[-1]}"))
        return {key for key in keys if key_hash(key) in names}

    def stage(self, key: str, rows: Mapping[str, pa.Table]) -> None:
        """Keep one piece: its rows of every table.

        Raises:
            ValueError: a table is missing, or its columns do not fit the schema.
            StoreError: the store is full or not writable.
        """
        if set(rows) != set(self._tables):
            raise ValueError(f"{key!r}: rows of {sorted(self._tables)} expected, not of {sorted(rows)}")
        for table in self._tables:
            path = f"{self._folder}/{table}/{key_hash(key)}.parquet"
            self._files.write(path, conform(table, rows[table]), file_metadata(self._method, key=key))

    def commit(self, keys: Sequence[str], row_of: Callable[[Mapping[str, pa.Table]], Mapping[str, object]]) -> None:
        """Merge the pieces of these keys into one sorted file a table, write the row that commits them, remove the pieces.

        Args:
            keys: of the pieces.
            row_of: makes the row that commits them from the merged tables.

        Raises:
            ValueError: an unknown column.
            StoreError: the store is full or not writable, or a piece is gone.
        """
        merged = {table: self._merged(table, keys) for table in self._tables}
        row = row_of(merged)
        unknown = sorted({*row} - {*SCHEMAS[self._row_of].names})
        if unknown:
            raise ValueError(f"table {self._row_of!r} has no columns {unknown}")
        for table, rows in merged.items():
            self._files.write(
                f"{table}/{self.batch_id}.parquet", described(table, rows), file_metadata(self._method), rows=ROW_GROUP
            )
        committing = pa.Table.from_pylist([dict(row)], schema=TABLES[self._row_of].described)
        self._files.write(f"{self._row_of}/{self.batch_id}.parquet", committing, file_metadata(self._method))
        self._files.remove_folder(self._folder)

    def discard(self) -> None:
        """Forget the pieces."""
        self._files.remove_folder(self._folder)

    def _merged(self, table: str, keys: Sequence[str]) -> pa.Table:
        paths = [f"{self._folder}/{table}/{key_hash(key)}.parquet" for key in keys]
        with ThreadPoolExecutor(_READERS) as pool:
            parts = list(pool.map(self._files.read, paths))
        there = [complete(table, part) for part in parts if part is not None]
        gone = len(parts) - len(there)
        if gone:
            raise StoreError(f"{gone} staged pieces of {self.batch_id!r} were removed while it ran: run it again")
        schema = SCHEMAS[table]
        merged = pa.concat_tables([schema.empty_table(), *there])
        return merged.sort_by([(column, "ascending") for column in _ORDER if column in schema.names])
