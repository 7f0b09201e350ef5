"""`rmtscan query`, `sql`, `models` and `status`: asking a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from scanner.cli.output import DEFAULT_STORE, Format, FormatOption, StoreOption, note, write

if TYPE_CHECKING:
    from scanner.store import Store

#: Pairs of models that a note names.
_NAMED = 6


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command("query")(query)
    app.command("sql")(sql)
    app.command("models")(models)
    app.command("status")(status)


def _parse(parameters: list[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for text in parameters:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--param")
        found[name] = None if value == "NULL" else value  # as --list shows it
    return found


def query(
    name: Annotated[str | None, typer.Argument(help="The query; see --list.", show_default=False)] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="A parameter, NAME=VALUE; repeatable.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", "-l", help="List the queries, or with NAME describe one.")] = False,
    store: StoreOption = DEFAULT_STORE,
    form: FormatOption = Format.table,
) -> None:
    """Ask a named query.

    Examples:

        rmtscan query --list

        rmtscan query outliers

        rmtscan query layer_trend -p model=my-model --format csv > trend.csv
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
        opened = open_store(store)
        answer = opened.query(name, **values)
        write(answer, form)
        if answer.num_rows == 0:
            there = (
                _compared(opened)
                if name.startswith("pair_")
                else f"`rmtscan models --store {store}` shows what is scanned, `rmtscan query experiments` what was measured"
            )
            note(f"no rows: {there}, `rmtscan query {name} --list` shows the parameters")


def _compared(store: Store) -> str:
    """Which pairs of models are compared, in words."""
    from scanner.checkpoint.names import printable

    rows = store.sql("from files.model_pairs").to_pylist()
    if not rows:
        return "no pair of models is compared, `rmtscan compare BASE TUNED` does that"
    names = sorted({f"{printable(row['base_model'])} -> {printable(row['tuned_model'])}" for row in rows})
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"nothing to list of what is compared ({', '.join(names[:_NAMED])}{more})"


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


def sql(
    statement: Annotated[str, typer.Argument(help="One SELECT statement (DuckDB's SQL).", show_default=False)],
    store: StoreOption = DEFAULT_STORE,
    form: FormatOption = Format.table,
) -> None:
    """Ask with SQL.

    The tables are scans, matrices, vectors, failures, controls; comparisons, pairs, pair_vectors, pair_subspaces;
    experiments, overlaps, activation_spectra, ablations, finetunes, baselines, run_skips. Of a matrix or pair that was computed more than once
    they hold the newest result; all_matrices, all_vectors, all_pairs, all_pair_vectors and all_pair_subspaces hold every one.
    Write "overlaps" in double quotes: by itself it is a word of SQL.

    Only SELECT is accepted, and it reads nothing outside the store.

    Examples:

        rmtscan sql "SELECT role, avg(v_p) FROM vectors WHERE region = 'left' GROUP BY role"
    """
    from scanner.store import open_store

    write(open_store(store).sql(statement), form)


def models(store: StoreOption = DEFAULT_STORE, form: FormatOption = Format.table) -> None:
    """List what has been scanned."""
    from scanner.store import open_store

    write(open_store(store).query("scans"), form)


def status(store: StoreOption = DEFAULT_STORE, form: FormatOption = Format.table) -> None:
    """What is scanned, what is unfinished, what failed. Runs of experiments are listed by `rmtscan query experiments`."""
    import pyarrow as pa

    from scanner.store import open_store

    opened = open_store(store)
    rows = [
        {
            "model": row["model"],
            "scan_id": row["scan_id"],
            "state": "scanned",
            "matrices": row["matrices"],
            "failed": row["failed"],
        }
        for row in opened.query("scans").to_pylist()
    ]
    rows += [
        {
            "model": scan.model,
            "scan_id": scan.scan_id,
            "state": "unfinished",
            "matrices": scan.parts,
            "failed": scan.failures,
        }
        for scan in opened.unfinished()
    ]
    runs = opened.query("experiments").num_rows
    if runs:
        note(f"runs of experiments: {runs} (rmtscan query experiments --store {store})")
    if not rows:
        note(f"nothing scanned yet in {opened.url}; begin with: rmtscan scan REF --store {store}")
    schema = pa.schema(
        {
            "model": pa.string(),
            "scan_id": pa.string(),
            "state": pa.string(),
            "matrices": pa.int32(),
            "failed": pa.int32(),
        }
    )
    write(pa.Table.from_pylist(rows, schema=schema), form)
