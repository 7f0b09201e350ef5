"""Write the generated files of this folder, or with --check report the ones that are stale (exit status 1)."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parent


def queries() -> str:
    """Return docs/queries.md: every named query with its parameters and columns."""
    from scanner.store.catalogue import catalogue
    from scanner.store.queries import load_queries

    return catalogue(load_queries().values())


def tables() -> str:
    """Return docs/tables.md: every table with its columns."""
    from scanner.store.documentation import documentation
    from scanner.store.tables import TABLES

    return documentation(TABLES.values())


def command_line() -> str:
    """Return docs/cli.md: every verb with its arguments and options."""
    import typer
    from typer.cli import get_docs_for_click

    from scanner.cli.main import application

    command = typer.main.get_command(application())
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="rmtscan", title="Command line")
    head = "Generated from the command's own help by `make docs`. Options mean the same in every verb.\n"
    lines = [line.rstrip() for line in text.replace("\n", f"\n\n{head}", 1).splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


#: What is generated, by file name.
GENERATED: dict[str, Callable[[], str]] = {"queries.md": queries, "tables.md": tables, "cli.md": command_line}


def stale() -> list[str]:
    """Return the names of the files that differ from what the code generates."""
    return [
        name
        for name, generate in GENERATED.items()
        if not (DOCS / name).is_file() or (DOCS / name).read_text("utf-8") != generate()
    ]


def main(arguments: list[str]) -> int:
    """Write the files that are stale, or only name them."""
    names = stale()
    if arguments == ["--check"]:
        for name in names:
            print(f"docs/{name} is stale: run `make docs`", file=sys.stderr)
        return 1 if names else 0
    for name in names:
        (DOCS / name).write_text(GENERATED[name](), "utf-8")
        print(f"docs/{name} written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
