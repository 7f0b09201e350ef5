"""`rmtscan query`: ask a named query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from scanner.cli import options
from scanner.cli.answers import AnswerOption, ForceOption, answer_to
from scanner.cli.output import DEFAULT_STORE, FormatOption, StoreOption, note, write

if TYPE_CHECKING:
    from scanner.store import Store

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
    store: StoreOption = DEFAULT_STORE,
    form: FormatOption = "table",
    output: AnswerOption = None,
    force: ForceOption = False,
) -> None:
    """Ask a named query.

    Examples:

        rmtscan query --list

        rmtscan query outliers

        rmtscan query layer_trend -p model=my-model --format csv > trend.csv

        rmtscan query outliers -o outliers.xlsx
    """
    import pyarrow as pa

    from scanner.store import open_store
    from scanner.store.queries import load_queries

    if listed and name is not None:
        _describe(name)
    elif listed:
        known = list(load_queries().values())
        columns = {"query": [q.name for q in known], "answers": [q.title for q in known]}
        write(pa.table(columns | {"parameters": [" ".join(p.name for p in q.params) for q in known]}), form)
    elif name is None:
        raise typer.BadParameter("name a query, or use --list to see them", param_hint="NAME")
    else:
        values = _parse(param or [])
        with answer_to(output, force=force) as keep:
            opened = open_store(store)
            answer = opened.query(name, **values)
            if not keep(answer):
                write(answer, form)
        if answer.num_rows == 0:
            stored = (
                _compared(opened)
                if name.startswith("pair_")
                else f"`rmtscan models --store {store}` lists the scanned models, `rmtscan query experiments` the experiments"
            )
            note(f"no rows: {stored}, `rmtscan query {name} --list` the parameters")


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

    found = find_query(name)
    print(f"{found.name}: {found.title}\n\n{found.about}\n")
    if found.params:
        print("Parameters:")
        for param in found.params:
            default = "NULL" if param.default is None else param.default
            print(f"  {param.name} {param.type} = {default}   {' '.join(param.help.split())}")
    print("Columns:")
    for column in found.columns:
        print(f"  {column.name}   {' '.join(column.help.split())}")
