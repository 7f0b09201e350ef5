"""`rmtscan rm`: remove scans, models, comparisons and runs from a store."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from scanner.cli import options
from scanner.cli.answers import TableOptions, printer
from scanner.cli.output import DEFAULT_STORE, StoreOption, note
from scanner.cli.progress import waiting

if TYPE_CHECKING:
    from scanner.store import Store


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "rm", rm)


def rm(
    *,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="WHAT...",
            help="MODEL or a unique part of its name, MODEL@REVISION, or the id of a scan, comparison or run.",
            show_default=False,
        ),
    ],
    store: StoreOption = DEFAULT_STORE,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
    table: TableOptions,
) -> None:
    """Remove scans from a store: all of a model, those of a revision, or single ones. Comparisons and runs are removed by their id.

    What is going to be removed is printed, and what queries show instead; then you are asked. Removed results cannot be
    restored.

    Examples:

        rmtscan rm org/model --store results --dry-run

        rmtscan rm org/model@5f3c0a 0f2a77c1d9e4b6a8 --yes
    """
    show = printer(table, columns=("table", "result", "model", "revision", "finished_at"), rows=None)

    import pyarrow as pa

    from scanner.checkpoint.names import printable
    from scanner.cli.choosing import whole_name
    from scanner.errors import ScannerError
    from scanner.store import open_store
    from scanner.store.removal import plan_removal, remove

    with waiting(sys.stderr, "reading the store"):
        opened = open_store(store)
        named = [_whole(opened, one, whole_name) for one in what]
    for one, name in zip(what, named, strict=True):
        if yes and not dry_run and one != name:
            raise ScannerError(f"{printable(one)!r} is a part of {printable(name)!r}: with `yes`, write the whole name")
    with waiting(sys.stderr, "reading the store"):
        planned = plan_removal(opened, named)
    columns = {
        "table": pa.string(),
        "result": pa.string(),
        "model": pa.string(),
        "revision": pa.string(),
        "finished_at": pa.timestamp("us", tz="UTC"),
    }
    rows = {name: [getattr(one, name) for one in planned.removed] for name in columns}
    show(pa.table(rows, schema=pa.schema(columns)))
    for line in planned.consequences:
        note(line)
    count = len(planned.removed)
    if dry_run:
        note(f"nothing was removed; results that would be: {count}")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise ScannerError(
                "nothing was removed: repeat the command with `yes` to remove these results without a question"
            )
        typer.confirm(
            f"Remove {count} {'result' if count == 1 else 'results'} from {opened.url}?", abort=True, err=True
        )
    with waiting(sys.stderr, "removing"):
        remove(opened, planned)
    note(f"removed: {count}")


def _whole(store: Store, text: str, whole_name: Callable[[Store, str], str]) -> str:
    """Return the whole name of a model, with its revision if there is one."""
    name = whole_name(store, text)
    if name != text or "@" not in text:
        return name
    model, _, revision = text.rpartition("@")
    return f"{whole_name(store, model)}@{revision}"
