"""One scan on its way into a store: finished matrices are staged one by one, then committed together.

A part lies in STORE/staging/<scan_id>/<generation>/finished/<hash of key>.arrow (see `parts`), or, where a matrix failed,
in failures/<hash of key>.parquet beside it. The generation names the committed result that this scan is going to replace
(`first` when there is none). So whatever a crash leaves behind belongs to a generation that the next commit makes obsolete, and
needs no bookkeeping.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scanner.errors import StoreError
from scanner.store.files import StoreFiles
from scanner.store.parts import (
    SUFFIX,
    DamagedPartError,
    MatrixRow,
    finished_part,
    read_matrix_row,
    read_vectors,
    rows_of_scan,
)
from scanner.store.tables import SCHEMAS, TABLES, complete, described, file_metadata, to_json
from scanner.version import __version__

ROW_GROUP = 250_000
"""Rows of a row group: large enough to compress and scan well, small enough that queries skip what they do not need."""
SMALLEST_ROW_GROUP = 100_000
"""A file's last group is not smaller than this, unless the file is."""

FIRST = "first"
_ORDER = ["layer", "role", "tensor", "head", "expert"]
_JSON_COLUMNS = ("method", "environment", "skipped_tensors")
_READERS = 16
_SCAN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


AnyRead = TypeVar("AnyRead")


class _PartsGoneError(Exception):
    """Another driver committed the same scan and removed the parts while they were being merged."""


def is_scan_id(text: str) -> bool:
    """Whether the text can be a scan's id: letters, digits, `.`, `_`, `-`, so that it is safe as a file name."""
    return _SCAN_ID.fullmatch(text) is not None


def generation(files: StoreFiles, scan_id: str) -> str:
    """Names the committed result of a scan by its content, or `first` when nothing is committed yet."""
    row = files.read_bytes(f"scans/{scan_id}.parquet")
    return FIRST if row is None else hashlib.sha256(row).hexdigest()[:16]


class ScanWriter:
    """Writes one scan. Two writers of the same scan, in two processes, end with one complete result."""

    def __init__(self, files: StoreFiles, scan_id: str, *, method: Mapping[str, object], model: str) -> None:
        """Raises ValueError for an id that is no safe file name, StoreError when the store cannot be read."""
        if not is_scan_id(scan_id):
            raise ValueError(f"scan id {scan_id!r}: letters, digits, '.', '_' and '-' only, at most 128")
        self.scan_id = scan_id
        self._files = files
        self._method = dict(method)
        self._model = model
        self._generation = generation(files, scan_id)
        self._folder = f"staging/{scan_id}/{self._generation}"
        self._finished: set[str] = set()

    def staged(self) -> set[str]:
        """Keys of the matrices that are finished: both of their parts are there."""
        keys = set()
        for name, found in self._matrix_rows(self._finished_names()):
            if found is not None:  # a damaged part is none: its matrix is scanned again
                keys.add(found.key)
                self._finished.add(name)
        return keys

    def stage(self, key: str, matrices: pa.Table, vectors: pa.Table) -> None:
        """Keep the result of one matrix: its one row of `matrices` and its rows of `vectors`.

        Staging the same key again replaces it, and forgets a failure of that key.

        Raises:
            ValueError: not one row of `matrices`, rows of another scan, or columns that do not fit the schemas.
            StoreError: the store is full or not writable.
        """
        self.stage_part(key, finished_part(self.scan_id, key, matrices, vectors))

    def stage_part(self, key: str, part: bytes) -> None:
        """Keep the result of one matrix as `parts.finished_part` packed it for this scan and key, where it was computed.

        Raises:
            StoreError: the store is full or not writable.
        """
        name = key_hash(key)
        self._files.write_bytes(self._finished_path(name), part, lasting=False)
        self._files.remove(self._failure_path(name))
        self._finished.add(name)

    def stage_failure(self, key: str, failures: pa.Table) -> None:
        """Keep why a matrix could not be analysed. `staged` leaves it out, so a resumed scan tries it again.

        Raises:
            ValueError: rows of another scan, or columns that do not fit the schema.
            StoreError: the store is full or not writable.
        """
        rows = rows_of_scan(self.scan_id, "failures", failures)
        self._files.write(self._failure_path(key_hash(key)), rows, self._metadata(), lasting=False)

    def commit(self, scan: Mapping[str, object], *, clean_up: bool = True) -> None:
        """Merge the staged parts into one sorted file per table and write the row of `scans`, which commits them.

        Can be repeated, and resumed after a crash at any point. When another driver has committed the same scan since
        this writer was made, that result stands and this one's parts are dropped.

        Args:
            scan: the columns of `scans`; scan_id, model, matrices, vectors, failed, scanner_version and method are
                filled in, JSON columns may be given as dicts and lists, columns left out are null.
            clean_up: call `clean_up` at the end; who does not, does so later.

        Raises:
            ValueError: an unknown column.
            StoreError: the store is full or not writable; the scan stays unfinished and can be resumed.
        """
        unknown = sorted({*scan} - {*SCHEMAS["scans"].names})
        if unknown:
            raise ValueError(f"table 'scans' has no columns {unknown}")
        matrices = self._finished_names()
        failures = sorted({*self._files.names(f"{self._folder}/failures")} - {*matrices})
        # Looked up after the parts: the other driver writes its row before it removes them.
        committed = generation(self._files, self.scan_id)
        nothing_new = committed != FIRST and not matrices and not failures and not self._finished
        if committed == self._generation and not nothing_new:
            try:
                if not self._finished.issubset(matrices):
                    raise _PartsGoneError
                self._merge(matrices, failures, scan)
            except _PartsGoneError:
                if generation(self._files, self.scan_id) == self._generation:
                    raise StoreError(
                        f"staged parts of scan {self.scan_id!r} were removed while it ran (another run with --force, "
                        "or by hand): scan again"
                    ) from None
        if clean_up:
            self.clean_up()

    def discard(self) -> None:
        """Forget all staged parts of this scan.

        Raises:
            StoreError: they cannot be removed.
        """
        self._files.remove_folder(f"staging/{self.scan_id}")
        self._finished.clear()

    def clean_up(self) -> None:
        """Remove the parts that a commit made obsolete: those of every generation but the current one.

        The scan can be read before, and a crash in between leaves files that the next commit removes.

        Raises:
            StoreError: they cannot be removed.
        """
        folder = f"staging/{self.scan_id}"
        current = generation(self._files, self.scan_id)
        for name in self._files.folders(folder):
            if name != current:
                self._files.remove_folder(f"{folder}/{name}")
        self._files.remove_empty_folder(folder)

    def _merge(self, matrix_names: list[str], failure_names: list[str], scan: Mapping[str, object]) -> None:
        parts = [found.row for _, found in self._matrix_rows(matrix_names) if found is not None]
        if len(parts) < len(matrix_names):
            raise _PartsGoneError
        matrices = _stack("matrices", parts).append_column("part", pa.array(matrix_names, pa.string()))
        # Nulls come last.
        matrices = matrices.sort_by([(column, "ascending") for column in _ORDER])
        vector_parts = (self._vectors(name) for name in matrices["part"].to_pylist())
        parts = self._read_many(self._read, (self._failure_path(name) for name in failure_names))
        failures = _stack("failures", parts)

        vectors = self._write_vectors(vector_parts)
        self._files.write(
            f"matrices/{self.scan_id}.parquet", described("matrices", matrices.drop_columns("part")), self._metadata()
        )
        self._files.write(
            f"failures/{self.scan_id}.parquet", described("failures", failures.sort_by("tensor")), self._metadata()
        )
        counts = {"matrices": matrices.num_rows, "vectors": vectors, "failed": failures.num_rows}
        # Of the workers, over all runs that added to the scan: a clock would count other models, and not the resumed parts.
        seconds = pc.sum(matrices["seconds"]).as_py()
        self._write_scan({"seconds": seconds, **scan}, counts)

    def _write_vectors(self, parts: Iterable[pa.Table]) -> int:
        """Append the parts to the scan's file, in the order given, a row group at a time; the number of rows."""
        schema = TABLES["vectors"].described.with_metadata(self._metadata())
        waiting: list[pa.Table] = []
        rows = written = 0
        with (
            self._files.replacing(f"vectors/{self.scan_id}.parquet") as file,
            pq.ParquetWriter(file, schema, compression="zstd") as writer,
        ):
            for part in parts:
                waiting.append(complete("vectors", part).cast(TABLES["vectors"].described))
                rows += part.num_rows
                while rows - written >= ROW_GROUP + SMALLEST_ROW_GROUP:
                    together = pa.concat_tables(waiting)
                    writer.write_table(together.slice(0, ROW_GROUP), row_group_size=ROW_GROUP)
                    waiting = [together.slice(ROW_GROUP)]
                    written += ROW_GROUP
            if rows > written:
                writer.write_table(pa.concat_tables(waiting), row_group_size=ROW_GROUP + SMALLEST_ROW_GROUP)
        return rows

    def _write_scan(self, scan: Mapping[str, object], counts: Mapping[str, int]) -> None:
        own: dict[str, object] = {"scan_id": self.scan_id, "model": self._model, "scanner_version": __version__}
        row = {"method": self._method, **scan, **own, **counts}
        for column in _JSON_COLUMNS:
            value = row.get(column)
            if value is not None and not isinstance(value, str):
                row[column] = to_json(value)
        table = pa.Table.from_pylist([row], schema=TABLES["scans"].described)
        self._files.write(f"scans/{self.scan_id}.parquet", table, self._metadata())

    def _finished_names(self) -> list[str]:
        return self._files.names(f"{self._folder}/finished", SUFFIX)

    def _finished_path(self, name: str) -> str:
        return f"{self._folder}/finished/{name}{SUFFIX}"

    def _failure_path(self, name: str) -> str:
        return f"{self._folder}/failures/{name}.parquet"

    def _matrix_rows(self, names: Iterable[str]) -> list[tuple[str, MatrixRow | None]]:
        """What the finished parts say of their matrices."""
        read = self._files.read_bytes
        return self._read_many(lambda name: (name, read_matrix_row(read(self._finished_path(name)))), names)

    def _vectors(self, name: str) -> pa.Table:
        path = self._finished_path(name)
        content = self._files.read_bytes(path)
        if content is None:
            raise _PartsGoneError(path)
        try:
            return read_vectors(content)
        except DamagedPartError as error:
            raise StoreError(f"{self._files.full(path)!r} is damaged ({error}): remove it and scan again") from error

    def _metadata(self, **more: str) -> dict[str, str]:
        return file_metadata(self._method, **more)

    def _read(self, path: str) -> pa.Table:
        table = self._files.read(path)
        if table is None:
            raise _PartsGoneError(path)
        return table

    def _read_many(self, read: Callable[[str], AnyRead], names: Iterable[str]) -> list[AnyRead]:
        """Read many small files: at once on an object store, where the time goes into waiting; threads only cost on a disk."""
        if self._files.local:
            return [read(name) for name in names]
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(read, names))


def key_hash(key: str) -> str:
    """A safe file name of fixed length: a key holds a tensor's name, which may hold anything."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _stack(name: str, parts: list[pa.Table]) -> pa.Table:
    schema = SCHEMAS[name]
    return pa.concat_tables([schema.empty_table(), *(complete(name, part) for part in parts)])
