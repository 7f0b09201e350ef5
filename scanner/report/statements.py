"""Statements of the report, from the files in `sql/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scanner.figures.selection import rows_of as rows_of_file
from scanner.store import Store

_SQL = Path(__file__).resolve().parent / "sql"


def rows_of(store: Store, name: str, /, **values: object) -> list[dict[str, Any]]:
    """Return the rows of a statement in `sql/` with the given parameters."""
    return rows_of_file(store, _SQL / f"{name}.sql", **values)
