"""Tables on stdout, in one of several formats, and notes on stderr."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from scanner.cli.loading import loaded
from scanner.cli.logs import say
from scanner.cli.tables import View, draw

if TYPE_CHECKING:
    import pyarrow as pa

#: Number of rows that the format `table` shows; the other formats print all rows.
SHOWN = 200
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
    rows: int | None = SHOWN,
    whole: bool = False,
    more: str = "--all prints them",
    wider: str = "--wide shows them",
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
    loaded()
    if form == "table":
        if len({*table.column_names}) < table.num_columns:
            from scanner.export.answers import distinct_names

            table = distinct_names(table)
        drawn = draw(table, width=None if whole else line_width(), view=view, rows=rows)
        print("\n".join(drawn.lines))
        sys.stdout.flush()
        if rows is not None and table.num_rows > rows:
            note(f"... {table.num_rows - rows:,} more rows, {table.num_rows:,} in all; {more}")
        if drawn.left_out and table.num_rows:
            names = ", ".join(drawn.left_out[:_NAMED])
            others = f" and {len(drawn.left_out) - _NAMED} more columns" if len(drawn.left_out) > _NAMED else ""
            note(f"no room for {names}{others}; {wider}")
        sys.stdout.flush()
        return
    if form == "parquet" and sys.stdout.isatty():
        raise typer.BadParameter("parquet is binary: send it to a file (rmtscan ... --format parquet > rows.parquet)")
    from scanner.export.answers import write_answer

    sys.stdout.flush()
    write_answer(table, f".{form}", sys.stdout.buffer)
    sys.stdout.flush()


def line_width() -> int | None:
    """Return the cells of a line: those of the terminal, or of `COLUMNS`; None in a pipe, where grep and less need whole lines."""
    if sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) > 0 else None
