"""Output of `inspect --format json`, in a form that is small on disk: columns instead of rows, constants once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from .command import run

FILE = Path(__file__).parent / "inspect.json.gz"


def inspected(reference: str, more: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows that `inspect` prints.

    Raises:
        AssertionError: the command fails.
    """
    printed = run("inspect", reference, *more, "--format", "json")
    assert printed.status == 0, printed.err
    rows: list[dict[str, Any]] = json.loads(printed.out)
    return rows


def key(name: str, more: tuple[str, ...]) -> str:
    """Name of a call in the file."""
    return " ".join([name, *more])


def packed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Columns of the rows; one value stands for a column of equal values."""
    names = list(rows[0])
    assert all(list(row) == names for row in rows)
    columns = {name: [row[name] for row in rows] for name in names}
    return {
        "rows": len(rows),
        "columns": {name: values if _differ(values) else values[0] for name, values in columns.items()},
    }


def unpacked(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that were packed."""
    count = content["rows"]
    columns = {
        name: values if isinstance(values, list) else [values] * count for name, values in content["columns"].items()
    }
    return [{name: values[row] for name, values in columns.items()} for row in range(count)]


def _differ(values: list[Any]) -> bool:
    return any(value != values[0] for value in values)


def write(calls: dict[str, list[dict[str, Any]]]) -> None:
    """Write the file; equal content gives equal bytes."""
    text = json.dumps({name: packed(rows) for name, rows in calls.items()}, ensure_ascii=False, separators=(",", ":"))
    FILE.write_bytes(gzip.compress(text.encode(), mtime=0))


def read() -> dict[str, list[dict[str, Any]]]:
    """The frozen rows of every call."""
    content = json.loads(gzip.decompress(FILE.read_bytes()))
    return {name: unpacked(one) for name, one in content.items()}
