"""Tables as text that fits a terminal: a caption of constant columns, elided names, whole numbers, a line of totals."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from scanner.plain import escaped

if TYPE_CHECKING:
    import pyarrow as pa

    from scanner.store.queries import Query, Shown

#: Cells to which the text of a column is elided, the name of a model, and an id, which is needed as it is.
_LEAST, _LEAST_OF_MODEL, _LEAST_OF_ID = 12, 16, 24
#: Cells of the narrowest column of sentences.
_LEAST_OF_PROSE = 24
#: Columns of sentences, which are broken between words.
PROSE = frozenset("answers shows reason detail message example_message problem problems remedy failed_upgrades".split())
#: Columns that name a model: totals of a query may mean something for one model only.
_MODELS = ("model", "base_model", "tuned_model")


@dataclass(frozen=True, kw_only=True)
class View:
    """What of a table is shown."""

    shown: tuple[Shown, ...] = ()
    """Columns, or two in one cell; empty: all."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Column to its unit."""
    totals: tuple[str, ...] = ()
    """Columns with a total."""
    totals_of_one: bool = False
    """Whether there is a total only if all rows are of one model."""
    caption: bool = True
    """Whether columns with one value are written above the table, and empty ones are left out."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A table as text."""

    lines: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """Columns for which there was no room."""


def view_of(query: Query) -> View:
    """Return what a terminal shows of the answer to a query by default."""
    return View(
        shown=query.shown,
        units={column.name: column.unit for column in query.columns if column.unit},
        totals=query.totals,
        totals_of_one=query.totals_of_one,
    )


def draw(table: pa.Table, *, width: int | None, view: View | None = None, rows: int | None = None) -> Drawn:
    """Write a table as lines.

    Rows of one model stand below its name, if most models have several. Numbers are never cut. If the table is too wide, headers
    are broken after underscores, then texts are elided in the middle, then columns are left out, the last ones first;
    a single row is then written as a list.

    Args:
        table: the rows; columns have distinct names.
        width: cells of a line; None: as many as it takes.
        view: what is shown; None: all columns.
        rows: number of rows that are shown, of which constant columns and totals do not depend; None: all.
    """
    view = view or View(caption=False)
    columns, constant = _columns(table, view, table.num_rows if rows is None else rows)
    caption = _caption(constant, width)
    columns, groups = _grouped(columns, width) if view.caption else (columns, [])
    kept, gap, left_out = _fitted(columns, width)
    if left_out and table.num_rows == 1:
        return Drawn(lines=(*caption, *_listed(columns, width)))
    return Drawn(lines=(*caption, *([""] if caption else []), *_lines(kept, gap, groups)), left_out=tuple(left_out))


def number(value: float) -> str:
    """Write a number with three digits, or one decimal if it is larger than a hundred."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) >= 99.95:
        return f"{value:.1f}" if abs(value) < 1e9 else f"{value:.3g}"
    return f"{value:#.3g}".removesuffix(".")


def duration(seconds: float) -> str:
    """Write seconds as two units: `45 s`, `3 min 20 s`, `2 h 05 min`, `3 d 04 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h"


def cell(value: Any) -> str:
    """Write a value in one line, with control characters as escapes: names come from untrusted checkpoints."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return number(value)
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M")
    return escaped(str(value))


def elide(text: str, width: int, tail: int | None = None) -> str:
    """Replace the middle of a text by an ellipsis, so that it takes at most `width` cells.

    Args:
        text: the text.
        width: cells.
        tail: how many of them the end of the text takes at most; None: half.
    """
    if cell_len(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    tail = (width - 1) // 2 if tail is None else tail
    return f"{_start(text, width - 1 - tail)}…{_start(text[::-1], tail)[::-1]}"


def elided(texts: Sequence[str], width: int) -> list[str]:
    """Elide texts so that as many as possible of those that differ stay different: the ellipsis need not be in the middle."""
    distinct = [text for text in dict.fromkeys(texts) if cell_len(text) > width]
    half = max(0, (width - 1) // 2)
    most, found = 0, dict[str, str]()
    for tail in sorted(range(max(1, width)), key=lambda tail: abs(tail - half)):
        shown = {text: elide(text, width, tail) for text in distinct}
        different = len({*shown.values()})
        if different > most:
            most, found = different, shown
        if different == len(distinct):
            break
    return [found.get(text, text) for text in texts]


def wrapped(text: str, width: int) -> list[str]:
    """Break a text between words into lines of at most `width` cells; a longer word is elided."""
    found = textwrap.wrap(escaped(text), max(20, width), break_long_words=False, break_on_hyphens=False)
    return [elide(line, width) for line in found] or [""]


def _start(text: str, width: int) -> str:
    used, end = 0, 0
    for char in text:
        used += cell_len(char)
        if used > width:
            break
        end += 1
    return text[:end]


@dataclass(frozen=True, kw_only=True)
class _Column:
    header: str
    cells: Sequence[str]
    total: str | None
    numeric: bool
    prose: bool = False
    fixed: bool = False
    """Whether texts are never elided: times."""
    width: int = 0

    @property
    def natural(self) -> int:
        """Cells of the longest value."""
        return max(map(cell_len, (*self.cells, self.total or "")), default=0)

    @property
    def least(self) -> int:
        """Cells below which the column is not narrowed."""
        least = max(map(cell_len, _pieces(self.header)), default=0)
        if self.numeric or self.fixed:
            return max(least, self.natural)
        wanted = _LEAST_OF_PROSE if self.prose else _LEAST_OF_ID if self.header.endswith("_id") else _LEAST
        wanted = max(wanted, _LEAST_OF_MODEL if self.header in _MODELS else 0)
        return max(least, min(self.natural, wanted))


def _columns(table: pa.Table, view: View, rows: int) -> tuple[list[_Column], list[_Column]]:
    """Return the columns of the table, and those of its caption."""
    wanted = [(one.name, one.columns, one.between) for one in view.shown] or [
        (name, (name,), "") for name in table.column_names
    ]
    sums = _totals(table, view)
    shown, constant = [], []
    for name, parts, between in wanted:
        values = [table.column(part) for part in parts]
        made = _column(name, [value.slice(0, rows) for value in values], between, [sums.get(part) for part in parts])
        unit = next((view.units[part] for part in parts if part in view.units), "")
        made = replace(made, header=escaped(name) + (f" [{unit}]" if unit else ""))
        one_row = table.num_rows == 1 and (name in _MODELS or all(value.null_count for value in values))
        if view.caption and (one_row or (table.num_rows > 1 and all(map(_is_constant, values)))):
            constant.append(made)
        else:
            shown.append(made)
    return (shown, constant) if shown else (constant, [])


def _column(name: str, values: Sequence[pa.ChunkedArray], between: str, sums: Sequence[str | None]) -> _Column:
    numeric = all(is_number(value.type) for value in values)
    texts = [[cell(one) for one in value.to_pylist()] for value in values]
    total = sums[0] if len(sums) == 1 else None
    if len(texts) == 1:
        fixed = str(values[0].type).startswith("timestamp")
        return _Column(header=name, cells=texts[0], total=total, numeric=numeric, prose=name in PROSE, fixed=fixed)
    pairs = list(zip(*texts, strict=True))
    if all(one is not None for one in sums):
        pairs.append((str(sums[0]), str(sums[1])))
    first, second = (max((cell_len(pair[side]) for pair in pairs), default=0) for side in (0, 1))
    cells = [f"{a:>{first}}{between}{b:<{second}}" if a or b else "" for a, b in pairs]
    if all(one is not None for one in sums):
        total = cells.pop()
    return _Column(header=name, cells=cells, total=total, numeric=True)


def is_number(kind: pa.DataType) -> bool:
    """Whether values of this type are written to the right: numbers, and what has no text."""
    return str(kind) not in {"string", "large_string", "string_view", "bool"} and not str(kind).startswith(
        ("timestamp", "dictionary")
    )


def _is_constant(column: pa.ChunkedArray) -> bool:
    import pyarrow as pa

    try:
        return len(column.unique()) == 1
    except pa.ArrowNotImplementedError:
        return False


def _totals(table: pa.Table, view: View) -> dict[str, str]:
    import pyarrow.compute as pc

    several = [name for name in _MODELS if name in table.column_names and not _is_constant(table.column(name))]
    if table.num_rows < 2 or (view.totals_of_one and several):
        return {}
    sums = {name: pc.sum(table.column(name)).as_py() for name in view.totals}
    return {name: cell(value) for name, value in sums.items() if value is not None}


def _caption(constant: Iterable[_Column], width: int | None) -> list[str]:
    """Write the first values of columns, several in a line; what is empty is left out."""
    items = [(one.header, one.cells[0].strip()) for one in constant if one.cells and one.cells[0].strip()]
    lines: list[str] = []
    for header, value in items:
        text = f"{header} {value}"
        if width is not None and cell_len(text) > width:
            text = f"{header} {elide(value, max(1, width - cell_len(header) - 1))}"
        joined = f"{lines[-1]} · {text}" if lines else text
        if lines and (width is None or cell_len(joined) <= width):
            lines[-1] = joined
        else:
            lines.append(text)
    return lines


def _grouped(columns: Sequence[_Column], width: int | None) -> tuple[list[_Column], list[tuple[int, list[str]]]]:
    """Take out the columns that name models, if most names stand in several rows that follow each other.

    Returns:
        The other columns, and the first row of every group with the lines above it; none if the columns stay.
    """
    names = [one for one in columns if one.header in _MODELS]
    others = [one for one in columns if one.header not in _MODELS]
    if not names or not others or not names[0].cells:
        return [*columns], []
    keys = list(zip(*(one.cells for one in names), strict=True))
    starts = [at for at, key in enumerate(keys) if at == 0 or key != keys[at - 1]]
    if 2 * len(starts) > len(keys):
        return [*columns], []
    return others, [
        (at, _caption([replace(one, cells=one.cells[at : at + 1]) for one in names], width)) for at in starts
    ]


def _pieces(header: str) -> list[str]:
    """Return the parts between which a header can be broken: after underscores, and at spaces."""
    return [piece for word in header.split(" ") for piece in word.replace("_", "_\0").split("\0") if piece]


def _broken(header: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in header.split(" "):
        for at, piece in enumerate(one for one in word.replace("_", "_\0").split("\0") if one):
            space = "" if at or not lines else " "
            if lines and cell_len(lines[-1] + space + piece) <= width:
                lines[-1] += space + piece
            else:
                lines.append(piece)
    return lines or [""]


def _fitted(columns: Sequence[_Column], width: int | None) -> tuple[list[_Column], int, list[str]]:
    """Return the columns with their widths, the cells between two of them, and the names of those for which there is no room."""
    whole = [max(one.natural, cell_len(one.header)) for one in columns]
    if width is None or sum(whole) + 2 * (len(columns) - 1) <= width:
        return [replace(one, width=own) for one, own in zip(columns, whole, strict=True)], 2, []
    kept, left_out = list(columns), list[str]()
    while True:
        for gap in (2, 1):
            room = width - gap * (len(kept) - 1)
            if sum(one.least for one in kept) <= room:
                return _widened(kept, room), gap, left_out
        if len(kept) == 1:
            return [replace(kept[0], width=max(1, width))], 1, left_out
        left_out.insert(0, kept.pop().header)


def _widened(columns: Sequence[_Column], room: int) -> list[_Column]:
    """Give columns at their least width what is left: first to values, the narrowest first, then to headers."""
    widths = [one.least for one in columns]
    for wanted in ([one.natural for one in columns], [cell_len(one.header) for one in columns]):
        open_columns = [i for i, own in enumerate(widths) if own < wanted[i]]
        while open_columns and sum(widths) < room:
            at = min(open_columns, key=lambda i: widths[i])
            widths[at] += 1
            open_columns = [i for i in open_columns if widths[i] < wanted[i]]
    return [replace(one, width=own) for one, own in zip(columns, widths, strict=True)]


def _lines(columns: Sequence[_Column], gap: int, groups: Sequence[tuple[int, list[str]]] = ()) -> Iterator[str]:
    headers = [_broken(one.header, one.width) for one in columns]
    tall = max(map(len, headers))
    for line in range(tall):  # the last lines of all headers stand side by side
        yield _joined(
            [lines[line - tall + len(lines)] if line >= tall - len(lines) else "" for lines in headers], columns, gap
        )
    rule = "─" * (sum(one.width for one in columns) + gap * (len(columns) - 1))
    yield rule
    texts = [_texts(one) for one in columns]
    above = dict(groups)
    for at, row in enumerate(zip(*texts, strict=True)):
        if at in above:
            yield from [""] * (at > 0)
            yield from above[at]
        for line in range(max(map(len, row))):
            yield _joined([part[line] if line < len(part) else "" for part in row], columns, gap)
    if any(one.total is not None for one in columns):
        yield rule
        totals = [one.total or "" for one in columns]
        free = next((at for at, one in enumerate(columns) if one.total is None and one.width >= len("total")), None)
        if free is not None:
            totals[free] = "total"
        yield _joined(totals, columns, gap)


def _listed(columns: Sequence[_Column], width: int | None) -> Iterator[str]:
    """Write one row as a line per column; what is empty is left out."""
    room = max(cell_len(one.header) for one in columns)
    for one in columns:
        if one.cells[0]:
            line = f"{one.header}{' ' * (room - cell_len(one.header))}  {one.cells[0].strip()}"
            yield line if width is None else elide(line, width)


def _texts(column: _Column) -> list[list[str]]:
    """Return the lines of every value."""
    if column.prose and column.natural > column.width:
        return [wrapped(text, column.width) for text in column.cells]
    if column.natural > column.width:
        return [[text] for text in elided(column.cells, column.width)]
    return [[text] for text in column.cells]


def _joined(cells: Sequence[str], columns: Sequence[_Column], gap: int) -> str:
    parts = []
    for text, column in zip(cells, columns, strict=True):
        space = " " * max(0, column.width - cell_len(text))
        parts.append(space + text if column.numeric else text + space)
    return (" " * gap).join(parts).rstrip()
