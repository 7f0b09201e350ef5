"""Answers of queries as files: Parquet, CSV, JSON and Excel workbooks.

Names in an answer come from checkpoints. In CSV and Excel files, `'` stands before a text that a spreadsheet would run as a
formula.
"""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from scanner.checkpoint.names import printable
from scanner.errors import ConfigError, ScannerError
from scanner.export.flat import finite
from scanner.plain import as_json, inert

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
    return WRITERS[suffix](_distinct(table))


def _distinct(table: pa.Table) -> pa.Table:
    """Rename columns with the name of another one, which SQL allows: `a`, `a_2`."""
    names: list[str] = []
    for name in table.column_names:
        one, count = name, 1
        while one in names or (count > 1 and one in table.column_names):
            one, count = f"{name}_{count + 1}", count + 1
        names.append(one)
    if names == table.column_names:
        return table
    fields = [field.with_name(name) for field, name in zip(table.schema, names, strict=True)]
    return pa.Table.from_arrays(table.columns, schema=pa.schema(fields, metadata=table.schema.metadata))


def _parquet(table: pa.Table) -> bytes:
    """Return a Parquet file; what the columns are is in the metadata of its fields."""
    sink = io.BytesIO()
    pq.write_table(_with_text(table, nested=False), sink, compression="zstd")
    return sink.getvalue()


def _csv(table: pa.Table) -> bytes:
    plain = _with_text(finite(table), nested=True)
    for position, field in enumerate(plain.schema):
        if pa.types.is_string(field.type):
            texts = [None if text is None else inert(text) for text in plain.column(position).to_pylist()]
            plain = plain.set_column(position, field.name, pa.array(texts, pa.string()))
    plain = plain.rename_columns([inert(name) for name in plain.column_names])
    sink = io.BytesIO()
    pyarrow.csv.write_csv(plain, sink)
    return sink.getvalue()


def _json(table: pa.Table) -> bytes:
    rows = ",\n ".join(as_json(row) for batch in table.to_batches() for row in batch.to_pylist())
    return f"[{rows}]\n".encode("ascii")


def _xlsx(table: pa.Table) -> bytes:
    """Return a workbook: a sheet with the rows, and one that says what the columns are."""
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
    sink = io.BytesIO()
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
    return sink.getvalue()


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


def _with_text(table: pa.Table, *, nested: bool) -> pa.Table:
    """Convert columns of types that a format lacks to text: intervals, and with `nested` lists, structures and bytes."""
    for position, field in enumerate(table.schema):
        kind = field.type
        odd = nested and (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_dictionary(kind))
        if odd or pa.types.is_interval(kind):
            values = table.column(position).to_pylist()
            texts = [value if value is None or isinstance(value, str) else as_json(value) for value in values]
            metadata = {} if field.metadata is None else {"metadata": field.metadata}
            table = table.set_column(
                position, pa.field(field.name, pa.string(), **metadata), pa.array(texts, pa.string())
            )
    return table


WRITERS: dict[str, Callable[[pa.Table], bytes]] = {".parquet": _parquet, ".csv": _csv, ".json": _json, ".xlsx": _xlsx}
"""The formats, by suffix."""
