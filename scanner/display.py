"""What results look like in Python: one line of text, and a small HTML table in a notebook, with every name as text.

Answers of queries stay Arrow tables, which have neither. In IPython and Jupyter, a formatter for Arrow tables shows those that a
store returned (their schema has the key `rmtscan.query` in its metadata) and leaves all others to pyarrow.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ROWS = 20
"""Rows of a table that a notebook shows."""
MOST_COLUMNS = 20
"""Columns of a table that a notebook shows."""
MOST_CHARACTERS = 90
"""Characters of a text that are shown; the middle of a longer one is left out."""
QUERY = b"rmtscan.query"
"""Key in the metadata of a schema: the name of the query that the table answers, empty for SQL."""
TITLE = b"rmtscan.title"
"""Key in the metadata of a schema: the title of the query."""

_RIGHT = "text-align:right"
_LEFT = "text-align:left"


def plain(text: object, most: int = MOST_CHARACTERS) -> str:
    """Return a text on one line: control characters become escapes, and the middle of a long text becomes `…`."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in str(text))
    if len(shown) <= most:
        return shown
    end = (most - 1) // 2
    return f"{shown[: most - 1 - end]}…{shown[len(shown) - end :]}"


def shown(value: object) -> str:
    """Return a value as a cell: floats with three digits, times to the second, nothing for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return plain(value)


def counted(number: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun: `1 matrix`, `12 matrices`."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


def html_table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    caption: str = "",
    notes: Sequence[str] = (),
    about: Sequence[str] = (),
) -> str:
    """Return a small HTML table; every cell is escaped.

    Args:
        head: names of the columns.
        rows: cells; numbers are aligned to the right.
        caption: HTML above the table.
        notes: texts below it.
        about: what each column is, shown when the pointer is on its name.
    """
    cells = [list(row) for row in rows]
    right = [
        any(_is_number(row[i]) for row in cells) and all(_is_number(row[i]) or row[i] is None for row in cells)
        for i in range(len(head))
    ]
    names = []
    for i, name in enumerate(head):
        help_text = f' title="{escape(plain(about[i], 400))}"' if i < len(about) and about[i] else ""
        names.append(f'<th style="{_RIGHT if right[i] else _LEFT}"{help_text}>{escape(plain(name))}</th>')
    body = [
        "".join(f'<td style="{_RIGHT if right[i] else _LEFT}">{escape(shown(cell))}</td>' for i, cell in enumerate(row))
        for row in cells
    ]
    lines = "".join(f"<tr>{row}</tr>" for row in ["".join(names), *body])
    table = f"<table>{lines}</table>" if head else ""
    below = "<br>".join(escape(plain(note, 300)) for note in notes)
    below = f'<small style="color:gray">{below}</small>' if below else ""
    return f"<div>{caption}{table}{below}</div>"


def bold(text: object) -> str:
    """Return a text as bold HTML."""
    return f"<b>{escape(plain(text))}</b>"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---- answers of queries


def marked(table: pa.Table, name: str, title: str, columns: Mapping[str, str]) -> pa.Table:
    """Return an answer with its query in the metadata of the schema, and what its columns are in that of the fields.

    Neither is compared by `==` and `equals`, and slices, filters and sorted copies keep both. A Parquet file that is made of the
    table has them, too.

    Args:
        table: the answer.
        name: name of the query; empty for SQL.
        title: title of the query.
        columns: what each column is, by name.
    """
    schema = table.schema
    for position, field in enumerate(schema):
        if columns.get(field.name):
            told = " ".join(columns[field.name].split())
            schema = schema.set(position, field.with_metadata({"description": told}))
    schema = schema.with_metadata({**(table.schema.metadata or {}), QUERY: name.encode(), TITLE: title.encode()})
    # A cast would copy nothing either, but it refuses names that occur twice, which SQL allows.
    return type(table).from_arrays(table.columns, schema=schema)


def answer_html(table: pa.Table) -> str | None:
    """Return the HTML of an answer; None for a table that is not one."""
    metadata = table.schema.metadata or {}
    if QUERY not in metadata:
        return None
    fields = [*table.schema][:MOST_COLUMNS]
    name, title = (metadata.get(key, b"").decode("utf-8", "replace") for key in (QUERY, TITLE))
    caption = f"{bold(name)}: {escape(plain(title, 200))}" if name else ""
    about = [(field.metadata or {}).get(b"description", b"").decode("utf-8", "replace") for field in fields]
    columns = [table.column(i).slice(0, MOST_ROWS).to_pylist() for i in range(len(fields))]
    return html_table(
        [field.name for field in fields],
        zip(*columns, strict=True),
        caption=caption,
        notes=[_size(table)],
        about=about,
    )


def answer_text(table: pa.Table) -> str | None:
    """Return an answer as text: its size and its first rows; None for a table that is not one."""
    metadata = table.schema.metadata or {}
    if QUERY not in metadata:
        return None
    name = metadata[QUERY].decode("utf-8", "replace")
    head = f"{plain(name)}: {_size(table)}" if name else _size(table)
    columns: list[list[str]] = []
    width = 0
    for i, field in enumerate(table.schema):
        values = table.column(i).slice(0, MOST_ROWS).to_pylist()
        cells = [plain(field.name, 24), *(plain(shown(value), 24) for value in values)]
        wide = max(map(len, cells))
        width += wide + 2
        if columns and width > 100:
            columns.append(["…"] * len(cells))
            break
        right = any(_is_number(value) for value in values)
        columns.append([cell.rjust(wide) if right else cell.ljust(wide) for cell in cells])
    lines = ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
    return "\n".join([head, *lines])


def _size(table: pa.Table) -> str:
    parts = [counted(table.num_rows, "row"), counted(table.num_columns, "column")]
    size = " × ".join(parts)
    if table.num_rows > MOST_ROWS:
        size += f", the first {MOST_ROWS} rows are shown"
    if table.num_columns > MOST_COLUMNS:
        size += f", the first {MOST_COLUMNS} columns"
    return size


def show_answers() -> None:
    """Let IPython and Jupyter show answers of queries as tables; does nothing elsewhere, and nothing the second time."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    formatters = getattr(getattr(shell, "display_formatter", None), "formatters", None)
    if not formatters:
        return
    import pyarrow as pa

    # Who has chosen another formatter for Arrow tables keeps it.
    if pa.Table not in formatters["text/html"].type_printers:
        formatters["text/html"].for_type(pa.Table, answer_html)
    if pa.Table not in formatters["text/plain"].type_printers:
        formatters["text/plain"].for_type(pa.Table, _print)


def _print(table: pa.Table, printer: Any, cycle: bool) -> None:
    text = answer_text(table)
    printer.text(repr(table) if text is None else text)
