"""Tables on stdout, in one of several formats, and notes on stderr."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from scanner.cli.logs import say

if TYPE_CHECKING:
    import pyarrow as pa

#: First characters of a cell that spreadsheets take for a formula, or skip to find one.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
#: Number of rows that the format `table` shows; the other formats print all rows.
_SHOWN = 200
#: Number of reasons that are listed: those of adapters name a single tensor each.
_REASONS = 12

Format = Literal["table", "json", "csv", "parquet"]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="Format of the printed table.", show_default=True)]
StoreOption = Annotated[
    str,
    typer.Option(
        "--store", "-s", envvar="RMTSCAN_STORE", help="The store: a folder or any fsspec URL.", show_default=True
    ),
]
DEFAULT_STORE = "results"


def note(text: str) -> None:
    """Print a line on stderr, in the format of the other messages there."""
    say(text)


def note_skipped(counts: Mapping[str, int], *, before: str = "") -> None:
    """Print how many tensors were skipped for each reason, the most frequent reasons first; a reason may name a single tensor."""
    from scanner.checkpoint.names import printable

    ordered = sorted(counts.items(), key=lambda item: -item[1])
    for reason, count in ordered[:_REASONS]:
        note(f"  {before}{count} skipped: {printable(reason)}")
    rest = ordered[_REASONS:]
    if rest:
        note(
            f"  {before}{sum(count for _, count in rest)} skipped for {len(rest)} other reasons: rmtscan inspect lists them"
        )


def write(table: pa.Table, form: Format, *, whole: bool = False) -> None:
    """Print a table to stdout; the format `table` shows the first rows only, unless `whole` is true."""
    table = _with_distinct_names(table)
    if form == "table" and whole and table.num_rows > _SHOWN:
        _write_lines(table)
    elif form == "table":
        _write_text(table)
    elif form == "json":
        _write_json(table)
    elif form == "csv":
        import pyarrow.csv as pc

        sys.stdout.flush()
        pc.write_csv(_with_printable_text(_with_text_for(table, nested=True), _inert), sys.stdout.buffer)
    else:
        if sys.stdout.isatty():
            raise typer.BadParameter(
                "parquet is binary: send it to a file (rmtscan ... --format parquet > rows.parquet)"
            )
        import pyarrow.parquet as pq

        pq.write_table(_with_text_for(table, nested=False), sys.stdout.buffer)
    sys.stdout.flush()


def _with_distinct_names(table: pa.Table) -> pa.Table:
    """Rename duplicate columns, which SQL allows (`SELECT 1 AS a, 2 AS a`) and JSON objects do not."""
    names: list[str] = []
    for name in table.column_names:
        distinct, count = name, 1
        while distinct in names or (count > 1 and distinct in table.column_names):
            distinct, count = f"{name}_{count}", count + 1
        names.append(distinct)
    return table.rename_columns(names)


def _with_text_for(table: pa.Table, *, nested: bool) -> pa.Table:
    """Convert columns of types that a format lacks to text: intervals, and with `nested` (for CSV) lists, maps and bytes."""
    import pyarrow as pa

    for position, field in enumerate(table.schema):
        odd = nested and (pa.types.is_nested(field.type) or pa.types.is_binary(field.type))
        if odd or pa.types.is_interval(field.type):
            values = [_plain(value) for value in table.column(position).to_pylist()]
            texts = [value if value is None or isinstance(value, str) else _json(value) for value in values]
            table = table.set_column(position, field.name, pa.array(texts, pa.string()))
    return table


def _with_printable_text(table: pa.Table, printable: Callable[[str], str]) -> pa.Table:
    """Apply `printable` to the texts of text columns and to column names."""
    import pyarrow as pa

    def is_text(kind: pa.DataType) -> bool:
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))

    for position, field in enumerate(table.schema):
        of_texts = pa.types.is_dictionary(field.type) and is_text(field.type.value_type)
        if not of_texts and not is_text(field.type):
            continue
        # Every distinct text is escaped once: names and roles are repeated in every row.
        columns = []
        for chunk in table.column(position).chunks:
            coded = chunk if of_texts else chunk.cast(pa.string()).dictionary_encode()
            texts = [None if text is None else printable(text) for text in coded.dictionary.to_pylist()]
            columns.append(pa.array(texts, pa.string()).take(coded.indices))
        table = table.set_column(position, field.name, pa.chunked_array(columns, pa.string()))
    return _with_distinct_names(table.rename_columns([printable(name) for name in table.column_names]))


def _write_json(table: pa.Table) -> None:
    before = "["
    for batch in table.to_batches():
        for row in batch.to_pylist():
            print(before + _json(row), end="")
            before = ",\n "
    print("]" if before != "[" else "[]")


def _json(value: Any) -> str:
    import json

    # ASCII only: all other characters and control characters are written as escapes.
    return json.dumps(_plain(value), default=str, allow_nan=False, ensure_ascii=True)


def _plain(value: Any) -> Any:
    """Convert a value to JSON types: NaN and infinity to null, bytes to hexadecimal, decimals (sums of integers) to numbers."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value


def _printable(text: str) -> str:
    """Escape control characters: names come from untrusted checkpoints."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _inert(text: str) -> str:
    """Escape control characters, and put `'` before a text that a spreadsheet would run as a formula: names are untrusted."""
    return ("'" if text.startswith(_FORMULA) else "") + _printable(text)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"
    if hasattr(value, "strftime"):
        return str(value.strftime("%Y-%m-%d %H:%M:%S"))
    return _printable(str(value))


def _is_number(field: pa.Field) -> bool:
    return str(field.type) not in {"string", "bool"} and not str(field.type).startswith("timestamp")


def _write_lines(table: pa.Table) -> None:
    """Print one line per row, without a limit on rows or width; `_write_text` would take minutes."""
    from rich.cells import cell_len

    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        cells = [_printable(field.name), *map(_cell, column.to_pylist())]
        width = max(map(cell_len, cells))
        gaps = [" " * (width - cell_len(cell)) for cell in cells]
        number = _is_number(field)
        padded = [gap + cell if number else cell + gap for cell, gap in zip(cells, gaps, strict=True)]
        columns.append([padded[0], "─" * width, *padded[1:]])
    for line in zip(*columns, strict=True):
        print(" ".join(line).rstrip())


def _write_text(table: pa.Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = table.slice(0, _SHOWN)
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for field in table.schema:
        justify: Literal["left", "right"] = "right" if _is_number(field) else "left"
        drawn.add_column(Text(_printable(field.name)), justify=justify, overflow="fold")
    for row in shown.to_pylist():
        drawn.add_row(*(Text(_cell(value)) for value in row.values()))
    # Not limited to 80 columns outside of a terminal: grep and less need whole lines.
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    console.print(drawn)
    if table.num_rows > _SHOWN:
        note(f"... {table.num_rows - _SHOWN:,} more rows; --format csv, json or parquet prints all")
