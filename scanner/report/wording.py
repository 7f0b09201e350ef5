"""Text of findings: numbers, positions of matrices, and commands that show the numbers behind a sentence."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scanner.checkpoint.names import printable

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One statement about the results."""

    headline: str
    detail: str
    """The numbers behind it and their interpretation."""
    query: str = ""
    """A command that shows the numbers, without the option for the store."""
    warning: bool = False
    """Whether it concerns the limits of the results rather than the model."""


def where(row: Row) -> str:
    """Return the position of a matrix as text: `mlp_down of layer 5`."""
    text = str(row["role"])
    if row.get("module"):
        text += f" ({printable(str(row['module'])).replace('_', ' ')})"
    if row["layer"] is None:
        return f"{text} ({printable(str(row['tensor']))})" if row.get("tensor") else text
    text += f" of {layer_name(row.get('stack'), row['layer'])}"
    for name in ("head", "expert"):
        if row.get(name) is not None:
            text += f", {name} {row[name]}"
    return text


def number(value: float | None) -> str:
    """Format a p-value with two digits, or with one significant digit below 0.01."""
    if value is None:
        return "unknown"
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"


def percent(value: float) -> str:
    """Format a share as a percentage with three significant digits."""
    return f"{100 * value:.3g} %" if value else "0 %"


def signed(value: float | None, digits: int = 1) -> str:
    """Format a number with its sign, with a true minus."""
    return "unknown" if value is None else f"{value:+,.{digits}f}".replace("-", "−")


def counted(count: int, one: str, many: str) -> str:
    """Return a count with its noun: `1 matrix`, `2 matrices`."""
    return f"{count:,} {one if count == 1 else many}"


def listing(words: Sequence[str]) -> str:
    """Join words: `a, b and c`."""
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else "".join(words)


def layer_name(stack: str | None, layer: int) -> str:
    """Return `layer 3`, or `decoder layer 3` if the model has several stacks."""
    return f"layer {layer}" if not stack else f"{printable(str(stack))} layer {layer}"


def command(query: str, model: str, *params: str) -> str:
    """Return the command that runs a named query for a model."""
    return f"rmtscan query {query}{parameter('model', model)}" + "".join(f" -p {param}" for param in params)


def parameter(name: str, value: str) -> str:
    """Return an option of `rmtscan query` that is safe to paste into a shell."""
    return f" -p {in_shell(f'{name}={value}')}"


def in_shell(text: str) -> str:
    """Quote a word for a shell if needed."""
    return shlex.quote(printable(text))
