"""Tables on stdout, in one of several formats, and notes on stderr."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from scanner.cli.logs import say
from scanner.cli.tables import View, draw
from scanner.plain import as_json, inert, plain

if TYPE_CHECKING:
    import pyarrow as pa

#: Number of rows that the format `table` shows; the other formats print all rows.
_SHOWN = 200
#: Number of reasons that are listed: those of adapters name a single tensor each.
_REASONS = 12
#: Number of columns that a note names.
_NAMED = 8

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


def write(
    table: pa.Table,
    form: Format,
    *,
    view: View | None = None,
    rows: int | None = _SHOWN,
    whole: bool = False,
    more: str = "--format csv, json or parquet prints all",
    wider: str = "a wider terminal or --format csv shows them",
) -> None:
    """Print a table to stdout.

    Args:
        table: the rows; all formats but `table` print all of them, with all columns.
        form: the format.
        view: what the format `table` shows; None: all columns.
        rows: number of rows that the format `table` shows; None: all.
        whole: do not limit the length of lines.
        more: how to see the rows that are not shown, for a note.
        wider: how to see the columns for which there is no room, likewise.
    """
    table = _with_distinct_names(table)
    if form == "table":
        drawn = draw(table, width=None if whole else line_width(), view=view, rows=rows)
        print("\n".join(drawn.lines))
        sys.stdout.flush()
        if rows is not None and table.num_rows > rows:
            note(f"... {table.num_rows - rows:,} more rows, {table.num_rows:,} in all; {more}")
        if drawn.left_out and table.num_rows:
            names = ", ".join(drawn.left_out[:_NAMED])
            others = f" and {len(drawn.left_out) - _NAMED} more columns" if len(drawn.left_out) > _NAMED else ""
            note(f"no room for {names}{others}; {wider}")
    elif form == "json":
        _write_json(table)
    elif form == "csv":
        import pyarrow.csv as pc

        sys.stdout.flush()
        pc.write_csv(_with_printable_text(_with_text_for(table, nested=True), inert), sys.stdout.buffer)
    else:
        if sys.stdout.isatty():
            raise typer.BadParameter(
                "parquet is binary: send it to a file (rmtscan ... --format parquet > rows.parquet)"
            )
        import pyarrow.parquet as pq

        pq.write_table(_with_text_for(table, nested=False), sys.stdout.buffer)
    sys.stdout.flush()


def line_width() -> int | None:
    """Return the cells of a line: those of the terminal, or of `COLUMNS`; None in a pipe, where grep and less need whole lines."""
    if sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) > 0 else None


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
            values = [plain(value) for value in table.column(position).to_pylist()]
            texts = [value if value is None or isinstance(value, str) else as_json(value) for value in values]
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
            print(before + as_json(row), end="")
            before = ",\n "
    print("]" if before != "[" else "[]")
