"""The tables as a document, docs/tables.md."""

from __future__ import annotations

from collections.abc import Iterable

from scanner.store.tables import Column, Table, views

_HEAD = """\
# Tables

Generated from `scanner/store/definitions.py` by `make docs`; a test compares.

A store is a folder (or any fsspec URL) of Parquet files:

"""
_ABOUT = """\

The row of `scans` commits a scan, and that of `comparisons` a comparison: it is written last, and files without it are not read.
Unfinished work is in `staging/`, `staging-comparisons/` and `staging-experiments/`. `running/` tells which commands are at work.
`leases/` says which process reorganizes the store, and which nightly scan is at work.

Every file carries `rmtscan.schema_version`, `rmtscan.scanner_version` and `rmtscan.method` in its Parquet metadata, and
descriptions and units in that of its columns. Files of earlier versions lack columns that were added since; these read as NULL,
as do values that do not apply.

Every table is a view in SQL. Where a matrix was scanned more than once, `matrices` and `vectors` hold the newest result as a whole,
with two exceptions: one with vectors comes before those of `--values-only`, and each column of a metric (`--metrics`) is that of
the newest scan that computed it with the same `sigma_kind`, which may be another one than `scan_id`;
`all_matrices` and `all_vectors` hold the results of every scan. In the same way `pairs`, `pair_vectors` and `pair_subspaces` hold
the newest result for every pair of matrices, and `all_pairs`, `all_pair_vectors` and `all_pair_subspaces` those of every
comparison, also of part of a model (`--roles`, `--heads`); select one by its `pair_id`. A matrix is identified by model, revision,
`tensor`, `role`, `head` and `expert`.

"""
_KINDS = {
    "scan": "one file per scan",
    "comparison": "one file per comparison",
    "run": "files of one run",
    "point": "one file per measured point; a point that has its file is not measured again",
    "shared": "files that all scans share",
    "night": "one file per night; it is replaced while the night lasts",
}


def documentation(tables: Iterable[Table]) -> str:
    """Return Markdown: the files of a store, then the columns of every table."""
    known = list(tables)
    width = max(len(_path(table)) for table in known)
    files = [f"    {_path(table):{width}}  {table.row}" for table in known]
    names = ", ".join(f"`{name}`" for name in views())
    sections = [line for table in known for line in _section(table)]
    return "\n".join([_HEAD + "\n".join(files), _ABOUT + f"Names in SQL: {names}.", *sections]) + "\n"


def _path(table: Table) -> str:
    return f"STORE/{table.name}/{table.file}.parquet"


def _section(table: Table) -> list[str]:
    order = f" Sorted by {', '.join(f'`{name}`' for name in table.order)}." if table.order else ""
    about = f"{_sentence(table.row)} {_sentence(table.description)}{order} Kind: {_KINDS[table.kind]}."
    head = ["", f"## {table.name}", "", about, "", "| column | type | unit | |", "|---|---|---|---|"]
    return head + [_row(column) for column in table.columns]


def _row(column: Column) -> str:
    required = "" if not column.required else "; never NULL"
    return f"| `{column.name}` | {column.type} | {column.unit} | {_cell(column.description)}{required} |"


def _sentence(text: str) -> str:
    start = text if text.startswith("`") else text[:1].upper() + text[1:]
    return f"{_cell(start)}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
