"""`rmtscan query`: ask a named query."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from scanner.cli import options
from scanner.cli.answers import AnswerOption, ForceOption, answer_to
from scanner.cli.output import DEFAULT_STORE, FormatOption, StoreOption, line_width, note, write
from scanner.cli.progress import waiting
from scanner.cli.tables import View, view_of, wrapped

if TYPE_CHECKING:
    from scanner.store import Store
    from scanner.store.queries import Query, Shown

#: Rows that format table shows, of an answer that is read and of one that is drawn.
_ROWS, _ROWS_OF_CHARTS = 200, 10
#: Number of pairs of models that a note names.
_NAMED = 6


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "query", query)


def query(
    name: Annotated[str | None, typer.Argument(help="The query; see --list.", show_default=False)] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="A parameter of the query; can be repeated."),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", "-l", help="List the queries, or describe the query NAME.")] = False,
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="NAME,...", help="These columns, in any format.", show_default=False),
    ] = None,
    wide: Annotated[
        bool, typer.Option("--wide", "-w", help="All columns, in lines as long as they are, in format table.")
    ] = False,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows",
            "-n",
            metavar="N",
            min=1,
            help="Rows that format table shows.",
            show_default="200; 10 of a query for charts",
        ),
    ] = None,
    all_rows: Annotated[bool, typer.Option("--all", help="Show all rows in format table.")] = False,
    store: StoreOption = DEFAULT_STORE,
    form: FormatOption = "table",
    output: AnswerOption = None,
    force: ForceOption = False,
) -> None:
    """Ask a named query.

    Format table shows some columns of the answer, in lines that fit the terminal: columns that have one value are above the table,
    and long names lose their middle. Formats json, csv and parquet have all columns and rows. The name of a model can be
    shortened to any part that no other name has.

    Examples:

        rmtscan query --list

        rmtscan query outliers

        rmtscan query layer_trend -p model=my-model --format csv > trend.csv

        rmtscan query scans --columns model,dtype,bytes

        rmtscan query outliers -o outliers.xlsx
    """
    import pyarrow as pa

    from scanner.store import open_store
    from scanner.store.queries import find_query, load_queries

    if listed and name is not None:
        _describe(name)
    elif listed:
        known = list(load_queries().values())
        listing = {"query": [q.name for q in known], "answers": [q.title for q in known]}
        listing["parameters"] = [" ".join(p.name for p in q.params) for q in known]
        write(pa.table(listing), form, view=View(shown=_named(["query", "answers"]), caption=False), rows=None)
    elif name is None:
        raise typer.BadParameter("name a query, or use --list to see them", param_hint="NAME")
    else:
        values, found = _parse(param or []), find_query(name)
        view = view_of(found)
        if columns is not None:
            view = replace(view, shown=_chosen(found, columns), caption=False)
        elif wide:
            view = replace(view, shown=())
        with answer_to(output, force=force) as keep:
            with waiting(sys.stderr, f"asking {name}"):
                opened = open_store(store)
                answer = opened.query(name, **values)
            if columns is not None and (form != "table" or output is not None):
                answer = answer.select(list(dict.fromkeys(part for one in view.shown for part in one.columns)))
            if not keep(answer):
                shown = None if all_rows else rows or (_ROWS_OF_CHARTS if found.figures else _ROWS)
                write(answer, form, view=view, rows=shown, whole=wide, more=_more(found), wider="--wide shows them")
        if answer.num_rows == 0:
            stored = (
                _compared(opened)
                if name.startswith("pair_")
                else f"`rmtscan models --store {store}` lists the scanned models, `rmtscan query experiments` the experiments"
            )
            note(f"no rows: {stored}, `rmtscan query {name} --list` the parameters")


def _named(names: Sequence[str]) -> tuple[Shown, ...]:
    from scanner.store.queries import Shown

    return tuple(Shown(name=name, columns=(name,)) for name in names)


def _chosen(query: Query, text: str) -> tuple[Shown, ...]:
    """Return the columns that --columns names: those of the answer, or those that a terminal shows by default.

    Raises:
        typer.BadParameter: the query has no such column.
    """
    packed = {one.name: one for one in query.shown if one.between}
    known = {one.name: one for one in _named([column.name for column in query.columns])} | packed
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise typer.BadParameter(f"query {query.name!r} has no column {name!r}{hint}", param_hint="--columns")
    if not names:
        raise typer.BadParameter("name a column", param_hint="--columns")
    return tuple(known[name] for name in names)


def _more(query: Query) -> str:
    """Say how the other rows of an answer can be seen."""
    if query.figures:
        return f"made for a chart (rmtscan plot {query.figures[0]}); --all prints them"
    return "--all prints them"


def _parse(parameters: list[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for text in parameters:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--param")
        found[name] = None if value == "NULL" else value  # as --list prints it
    return found


def _compared(store: Store) -> str:
    """Say which pairs of models have been compared."""
    from scanner.checkpoint.names import printable

    rows = store.sql("from files.model_pairs").to_pylist()
    if not rows:
        return "no pair of models has been compared; `rmtscan compare BASE TUNED` compares one"
    names = sorted({f"{printable(row['base_model'])} -> {printable(row['tuned_model'])}" for row in rows})
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"these pairs have been compared: {', '.join(names[:_NAMED])}{more}"


def _describe(name: str) -> None:
    from scanner.store.queries import find_query

    found, width = find_query(name), line_width()

    def say(text: str, indent: int = 0) -> None:
        lines = [text] if width is None else wrapped(text, width - indent - (4 if indent else 0))
        for at, line in enumerate(lines):
            print(" " * (indent + (4 if at and indent else 0)) + line)

    say(f"{found.name}: {found.title}")
    print()
    for line in [found.about] if width is None else [" ".join(found.about.split())]:
        say(line)
    print()
    if found.params:
        print("Parameters:")
        for param in found.params:
            default = "NULL" if param.default is None else param.default
            say(f"{param.name} {param.type} = {default}   {' '.join(param.help.split())}", 2)
    if found.figures:
        print(f"Made for charts: rmtscan plot {', '.join(found.figures)}")
    print("Columns:")
    shown = {part for one in found.shown for part in one.columns}
    for column in found.columns:
        unit = f" [{column.unit}]" if column.unit else ""
        more = "" if column.name in shown or not shown else "  (--columns, --wide)"
        say(f"{column.name}{unit}   {' '.join(column.help.split())}{more}", 2)
