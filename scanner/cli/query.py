"""`rmtscan query`: ask a named query."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from scanner.cli import options
from scanner.cli.answers import AnswerOptions, named, printer
from scanner.cli.loading import loaded
from scanner.cli.output import DEFAULT_STORE, SHOWN, StoreOption, line_width, note
from scanner.cli.progress import waiting
from scanner.cli.tables import View, view_of, wrapped

if TYPE_CHECKING:
    from scanner.store import Store
    from scanner.store.queries import Query

#: Rows that format table shows of an answer that is made for a chart.
_ROWS_OF_CHARTS = 10
#: Number of pairs of models that a note names.
_NAMED = 6


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "query", query)


def query(
    *,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The query; see --list.", show_default=False)
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="A parameter of the query; can be repeated."),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", "-l", help="List the queries, or describe the query NAME.")] = False,
    store: StoreOption = DEFAULT_STORE,
    table: AnswerOptions,
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
        printer(table, View(shown=named(["query", "answers"]), caption=False), rows=None)(pa.table(listing))
    elif name is None:
        raise typer.BadParameter("name a query, or use --list to see them", param_hint="NAME")
    else:
        values, found = _parse(param or []), find_query(name)
        show = printer(
            table,
            view_of(found),
            columns=[column.name for column in found.columns],
            rows=_ROWS_OF_CHARTS if found.figures else SHOWN,
            more=_more(found),
            what=f"query {found.name!r}",
        )
        with waiting(sys.stderr, f"asking {name}"):
            opened = open_store(store)
            answer = opened.query(name, **values)
        show(answer)
        if answer.num_rows == 0:
            stored = (
                _compared(opened)
                if name.startswith("pair_")
                else f"`rmtscan models --store {store}` lists the scanned models, `rmtscan query experiments` the experiments"
            )
            note(f"no rows: {stored}, `rmtscan query {name} --list` the parameters")


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
    loaded()

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
