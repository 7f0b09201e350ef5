"""Answers of queries as files: Parquet, CSV, JSON and Excel workbooks.

Names in an answer come from checkpoints. In CSV and Excel files, `'` stands before a text that a spreadsheet would run as a
formula.
"""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from scanner.checkpoint.names import printable
from scanner.errors import ConfigError, ScannerError
from scanner.plain import as_json, inert, plain

MOST_ROWS, MOST_COLUMNS, MOST_CHARACTERS = 1_048_575, 16_384, 32_767
"""Limits of a sheet of Excel (without the header) and of a cell."""
_EXACT = 2**53
"""Whole numbers up to this size are exact in a cell of Excel."""


def suffix_of(path: Path) -> str:
    """Return the suffix of a file, which selects its format.

    Raises:
        ConfigError: there is no such format.
    """
    suffix = path.suffix.lower()
    if suffix not in WRITERS:
        raise ConfigError("output", f"{printable(path.name)!r}: the suffix selects the format: {' '.join(WRITERS)}")
    return suffix


def answer_file(table: pa.Table, suffix: str) -> bytes:
    """Return the content of a file with the rows of an answer.

    Args:
        table: the answer.
        suffix: one of `.parquet`, `.csv`, `.json` and `.xlsx`.

    Raises:
        ScannerError: the table is too large for a sheet of Excel, or the package for it is not installed.
    """
    sink = io.BytesIO()
    write_answer(table, suffix, sink)
    return sink.getvalue()


def write_answer(table: pa.Table, suffix: str, sink: BinaryIO) -> None:
    """Write the rows of an answer to an open file, as `answer_file` returns them."""
    WRITERS[suffix](distinct_names(table), sink)


def distinct_names(table: pa.Table) -> pa.Table:
    """Rename columns with the name of an earlier one, which SQL allows and files do not: `a`, `a_1`."""
    names: list[str] = []
    for name in table.column_names:
        one, count = name, 1
        while one in names or (count > 1 and one in table.column_names):
            one, count = f"{name}_{count}", count + 1
        names.append(one)
    return table if names == table.column_names else renamed(table, names)


def renamed(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return a table with other names of columns; what its columns are stays in the metadata of the fields."""
    fields = [field.with_name(name) for field, name in zip(table.schema, names, strict=True)]
    return pa.Table.from_arrays(table.columns, schema=pa.schema(fields, metadata=table.schema.metadata))


def with_text(table: pa.Table, *, nested: bool) -> pa.Table:
    """Convert columns of types that a format lacks to text: intervals, and with `nested` (CSV) lists, structures and bytes."""
    for position, field in enumerate(table.schema):
        kind = field.type
        odd = nested and (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
        if odd or pa.types.is_interval(kind):
            values = [plain(value) for value in table.column(position).to_pylist()]
            texts = [value if value is None or isinstance(value, str) else as_json(value) for value in values]
            table = table.set_column(position, field.with_type(pa.string()), pa.array(texts, pa.string()))
    return table


def inert_text(table: pa.Table) -> pa.Table:
    """Make texts and names of columns such that neither a terminal nor a spreadsheet acts on them."""
    for position, field in enumerate(table.schema):
        of_texts = pa.types.is_dictionary(field.type) and _is_text(field.type.value_type)
        if not of_texts and not _is_text(field.type):
            continue
        # Every distinct text is escaped once: names and roles are repeated in every row.
        columns = []
        for chunk in table.column(position).chunks:
            coded = chunk if of_texts else chunk.cast(pa.string()).dictionary_encode()
            texts = [None if text is None else inert(text) for text in coded.dictionary.to_pylist()]
            columns.append(pa.array(texts, pa.string()).take(coded.indices))
        table = table.set_column(position, field.with_type(pa.string()), pa.chunked_array(columns, pa.string()))
    return distinct_names(renamed(table, [inert(name) for name in table.column_names]))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _parquet(table: pa.Table, sink: BinaryIO) -> None:
    """Write a Parquet file; what the columns are is in the metadata of its fields."""
    pq.write_table(with_text(table, nested=False), sink, compression="zstd")


def _csv(table: pa.Table, sink: BinaryIO) -> None:
    pyarrow.csv.write_csv(inert_text(with_text(table, nested=True)), sink)


def _json(table: pa.Table, sink: BinaryIO) -> None:
    before = b"["
    for batch in table.to_batches():
        for row in batch.to_pylist():
            sink.write(before + as_json(row).encode("ascii"))
            before = b",\n "
    sink.write(b"]\n" if before != b"[" else b"[]\n")


def _xlsx(table: pa.Table, sink: BinaryIO) -> None:
    """Write a workbook: a sheet with the rows, and one that says what the columns are."""
    if table.num_rows > MOST_ROWS or table.num_columns > MOST_COLUMNS:
        raise ScannerError(
            f"{table.num_rows:,} rows and {table.num_columns:,} columns do not fit into a sheet of Excel "
            f"({MOST_ROWS:,} and {MOST_COLUMNS:,}): write .parquet or .csv"
        )
    try:
        xlsxwriter = importlib.import_module("xlsxwriter")
    except ImportError as error:
        raise ScannerError(
            "Excel workbooks need XlsxWriter, which is not installed: run `pip install 'rmtscan[xlsx]'`, or write .csv"
        ) from error
    # Texts stay texts, whatever they look like.
    options = {"in_memory": True, "strings_to_formulas": False, "strings_to_urls": False, "strings_to_numbers": False}
    with xlsxwriter.Workbook(sink, options) as book:
        bold, times = book.add_format({"bold": True}), book.add_format({"num_format": "yyyy-mm-dd hh:mm:ss"})
        sheet = book.add_worksheet("rows")
        sheet.freeze_panes(1, 0)
        for position, field in enumerate(table.schema):
            sheet.write_string(0, position, _cell_text(field.name), bold)
            widest = len(field.name)
            for number, value in enumerate(table.column(position).to_pylist(), start=1):
                shown = _write_cell(sheet, number, position, value, times)
                widest = max(widest, shown)
            sheet.set_column(position, position, min(widest + 2, 48))
        if table.num_rows:
            sheet.autofilter(0, 0, table.num_rows, table.num_columns - 1)
        about = book.add_worksheet("columns")
        about.set_column(0, 1, 24)
        for position, name in enumerate(("column", "what it is")):
            about.write_string(0, position, name, bold)
        for number, field in enumerate(table.schema, start=1):
            told = (field.metadata or {}).get(b"description", b"").decode("utf-8", "replace")
            about.write_string(number, 0, _cell_text(field.name))
            about.write_string(number, 1, _cell_text(told))


def _write_cell(sheet: Any, row: int, column: int, value: Any, times: Any) -> int:
    """Write one cell, and return about how wide it is."""
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() else float(value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return 0
    if isinstance(value, bool):
        sheet.write_boolean(row, column, value)
    elif isinstance(value, float) or (isinstance(value, int) and abs(value) <= _EXACT):
        sheet.write_number(row, column, value)
        return 10
    elif isinstance(value, datetime | date):
        # Excel knows no time zones: times are UTC.
        moment = value.astimezone(UTC).replace(tzinfo=None) if isinstance(value, datetime) and value.tzinfo else value
        sheet.write_datetime(row, column, moment, times)
        return 19
    else:
        text = _cell_text(value if isinstance(value, str) else as_json(value))
        sheet.write_string(row, column, text)
        return len(text)
    return 8


def _cell_text(text: str) -> str:
    """Return a text that no spreadsheet runs, and that fits into a cell; `…` ends one that is cut."""
    shown = inert(text)
    return shown if len(shown) <= MOST_CHARACTERS else f"{shown[: MOST_CHARACTERS - 1]}…"


WRITERS: dict[str, Callable[[pa.Table, BinaryIO], None]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".json": _json,
    ".xlsx": _xlsx,
}
"""The formats, by suffix."""
