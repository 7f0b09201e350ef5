"""`rmtscan publish`: write a store as a dataset folder or a static Space for the Hugging Face Hub."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from scanner.cli import options
from scanner.cli.answers import TableOptions, printer
from scanner.cli.output import note
from scanner.cli.progress import waiting

if TYPE_CHECKING:
    from scanner.store import Store


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "publish", publish)


def publish(
    *,
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="The store: a folder or any fsspec URL.", show_default=False)
    ],
    to: Annotated[str, typer.Option("--to", metavar="PATH", help="The folder of the dataset.", show_default=False)],
    name: Annotated[
        str | None, typer.Option(help="Name of the dataset on its card.", show_default="made from the models")
    ] = None,
    license_id: Annotated[
        str, typer.Option("--license", metavar="ID", help="Identifier of the license on the Hub.")
    ] = "cc-by-4.0",
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder that contains other files; they are kept.")
    ] = False,
    space: Annotated[
        bool, typer.Option("--space", help="Write the site of the store as a static Space instead of a dataset.")
    ] = False,
    table: TableOptions,
) -> None:
    """Write a store as a folder for the Hugging Face Hub: a dataset of Parquet files for `datasets` and DuckDB, or a Space.

    Only finished scans are published, without paths of this machine. Publishing again updates the folder: files that changed are
    written, files that are no longer in the store are removed, and all others stay as they are.

    Examples:

        rmtscan publish results --to dataset

        hf upload ORG/NAME dataset . --repo-type dataset

        rmtscan publish results --space --to space
    """
    show = printer(table, columns=("table", "files", "rows", "bytes"))

    import pyarrow as pa

    from scanner.store import open_store
    from scanner.store.publish import publish as publish_store

    with waiting(sys.stderr, "reading the store"):
        opened = open_store(store)
    if space:
        _publish_space(opened, to, name, license_id, force)
        return
    with waiting(sys.stderr, f"publishing {opened.url}"):
        tables = publish_store(opened, to, name=name, license_id=license_id, force=force)
    columns: dict[str, list[object]] = {
        "table": [found.table for found in tables],
        "files": [found.files for found in tables],
        "rows": [found.rows for found in tables],
        "bytes": [found.bytes for found in tables],
    }
    schema = pa.schema([("table", pa.string()), ("files", pa.int32()), ("rows", pa.int64()), ("bytes", pa.int64())])
    show(pa.table(columns, schema=schema))
    note(f"published into {to}; next: hf upload ORG/NAME {to} . --repo-type dataset")


def _publish_space(store: Store, to: str, name: str | None, license_id: str, force: bool) -> None:
    with waiting(sys.stderr, "writing the site"):
        from scanner.site.space import write_space

        site = write_space(store, to, name=name, license_id=license_id, force=force)
    note(
        f"wrote {site.models} models into {to}, {site.bytes / 1e6:.1f} MB; next: hf upload ORG/NAME {to} . --repo-type space"
    )
