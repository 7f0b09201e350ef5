"""The named queries as a document, docs/queries.md."""

from collections.abc import Iterable

from scanner.store.queries import Parameter, Query

_HEAD = """\
# Named queries

Generated from the headers of `queries/*.sql` by `make docs`; a test compares.
[tables.md](tables.md) has the tables that they read.

    rmtscan query --list
    rmtscan query NAME --param model=org/model --format csv

    store = scanner.open_store("results")
    store.query("NAME", model="org/model").to_pandas()

A parameter without a value given has its default; NULL stands for all. A parameter of type MODEL takes the name of a model, or a
part of it that no other name has. A terminal shows the columns in bold; `--columns` and `--wide` show others, and the formats json,
csv and parquet have all. Answers that are made for charts have a figure, and a terminal shows their first rows.
"""


def catalogue(queries: Iterable[Query]) -> str:
    """Return Markdown: a table of contents, then the description, parameters and columns of every query."""
    known = list(queries)
    contents = ["| query | answers |", "|---|---|"]
    contents += [f"| [`{query.name}`](#{query.name}) | {_cell(query.title)} |" for query in known]
    return "\n".join([_HEAD, *contents, *(line for query in known for line in _section(query))]) + "\n"


def _section(query: Query) -> list[str]:
    lines = ["", f"## {query.name}", "", f"**{query.title}**", "", query.about, ""]
    if query.params:
        lines += ["| parameter | type | default | |", "|---|---|---|---|"]
        lines += [f"| `{p.name}` | {p.type} | {_default(p)} | {_cell(p.help)} |" for p in query.params]
        lines += [""]
    if query.figures:
        lines += [f"Made for charts: {', '.join(f'`rmtscan plot {name}`' for name in query.figures)}.", ""]
    shown = {part for one in query.shown for part in one.columns}
    lines += ["| column | unit | |", "|---|---|---|"]
    return lines + [
        f"| {f'**`{column.name}`**' if column.name in shown else f'`{column.name}`'} | {column.unit} | {_cell(column.help)} |"
        for column in query.columns
    ]


def _default(param: Parameter) -> str:
    if param.required:
        return "required"
    if param.default is None:
        return "NULL"
    return str(param.default).lower() if isinstance(param.default, bool) else str(param.default)


def _cell(text: str) -> str:
    """Return a text as the content of a table cell: one line, with vertical bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")
