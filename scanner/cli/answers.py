"""The options of all verbs that print a table, and the one way in which a table is printed or written to a file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

import typer

from scanner.cli.output import SHOWN, Format, note, write
from scanner.cli.tables import View
from scanner.configuration import option

if TYPE_CHECKING:
    import pyarrow as pa

    from scanner.store.queries import Shown


def _names(text: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not found:
        raise ValueError("name a column")
    return found


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How a table is printed."""

    columns: tuple[str, ...] = option((), metavar="NAME,...", parse=_names)
    """These columns, in any format."""
    wide: bool = option(False, flags=("-w",))
    """All columns, in lines as long as they are, in format table."""
    rows: int | None = option(None, flags=("-n",), metavar="N", min=1)
    """Rows that format table shows; None: 200, 10 of a query for charts, all of a summary or a list."""
    all_rows: bool = option(False, name="all")
    """Show all rows in format table."""
    form: Format = option("table", name="format", flags=("-f",))
    """Format of the printed table."""


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(TableOptions):
    """How a table is printed, or to which file it is written."""

    output: str | None = option(None, flags=("-o",), metavar="FILE")
    """Write the table to a file; the suffix selects the format: .parquet .csv .json .xlsx; None: stdout."""
    force: bool = False
    """Overwrite the file if it exists."""


Print = Callable[["pa.Table"], None]


def printer(
    how: TableOptions,
    view: View | None = None,
    *,
    columns: Sequence[str] | None = None,
    rows: int | None = SHOWN,
    more: str = "--all prints them",
    what: str = "the table",
) -> Print:
    """Return a function that prints a table, or writes it to a file, as the options say; the options are checked before.

    Args:
        how: the options.
        view: what the format `table` shows by default; None: all columns.
        columns: all columns of the table; None: they are known when it is printed.
        rows: number of rows that the format `table` shows by default; None: all.
        more: how to see the rows that are not shown, for a note.
        what: what has the columns, for a message.

    Raises:
        typer.BadParameter: there is no such column.
        ConfigError: the file exists (without `force`), or its folder or the format does not.
    """
    view = view or View(caption=False)
    if columns is not None:
        chosen_view(how, view, columns, what)
    keep = _keeper(how) if isinstance(how, AnswerOptions) and how.output is not None else None

    def show(table: pa.Table) -> None:
        if len({*table.column_names}) < table.num_columns:
            from scanner.export.answers import distinct_names

            table = distinct_names(table)
        chosen = chosen_view(how, view, table.column_names, what)
        if how.columns and (how.form != "table" or keep is not None):
            table = table.select(list(dict.fromkeys(part for one in chosen.shown for part in one.columns)))
        if keep is not None:
            keep(table)
            return
        limit = None if how.all_rows else how.rows or rows
        write(table, how.form, view=chosen, rows=limit, whole=how.wide, more=more, wider="--wide shows them")

    return show


def named(names: Sequence[str]) -> tuple[Shown, ...]:
    """Return columns that stand for themselves."""
    from scanner.store.queries import Shown

    return tuple(Shown(name=name, columns=(name,)) for name in names)


def chosen_view(how: TableOptions, view: View, columns: Sequence[str], what: str = "the table") -> View:
    """Return the view with the columns of --columns, which are those of the table, or pairs that a terminal shows in one cell."""
    if not how.columns:
        return replace(view, shown=()) if how.wide else view
    known = {one.name: one for one in named(columns)} | {one.name: one for one in view.shown if one.between}
    for name in how.columns:
        if name not in known:
            _unknown(name, [*known], what)
    return replace(view, shown=tuple(known[name] for name in how.columns), caption=False)


def _unknown(name: str, known: Sequence[str], what: str) -> NoReturn:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
    raise typer.BadParameter(f"{what} has no column {name!r}{hint}", param_hint="--columns")


def _keeper(how: AnswerOptions) -> Callable[[pa.Table], None]:
    """Return a function that writes a table to the file of -o."""
    from scanner.export import answers, writing

    assert how.output is not None
    path = writing.check(how.output, force=how.force)
    suffix = answers.suffix_of(path)

    def keep(answer: pa.Table) -> None:
        content = answers.answer_file(answer, suffix)
        writing.write(path, content)
        note(f"{path}: {answer.num_rows:,} rows, {len(content):,} bytes")

    return keep
