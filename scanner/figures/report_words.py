"""The words of findings: numbers as text, matrices by their place, commands that show the numbers behind a sentence."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scanner.checkpoint.names import printable

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that the data says."""

    headline: str
    detail: str
    """The numbers behind it, and how to read them."""
    query: str = ""
    """A command that shows the numbers, without the store."""
    warning: bool = False
    """Whether it is about the results' limits and not about the model."""


def where(row: Row) -> str:
    """A matrix in words: `mlp_down of layer 5`."""
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
    """A p-value as text: two digits, never 0.00."""
    if value is None:
        return "unknown"
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"


def percent(value: float) -> str:
    """A share in per cent with three significant digits."""
    return f"{100 * value:.3g} %" if value else "0 %"


def signed(value: float | None, digits: int = 1) -> str:
    """A number with its sign, a true minus."""
    return "unknown" if value is None else f"{value:+,.{digits}f}".replace("-", "−")


def counted(count: int, one: str, many: str) -> str:
    """`1 matrix`, `2 matrices`."""
    return f"{count:,} {one if count == 1 else many}"


def listing(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else "".join(words)


def layer_name(stack: str | None, layer: int) -> str:
    """`layer 3`, or where a model has several stacks `decoder layer 3`."""
    return f"layer {layer}" if not stack else f"{printable(str(stack))} layer {layer}"


def command(query: str, model: str, *params: str) -> str:
    """The command that asks a named query about a model."""
    return f"rmtscan query {query}{parameter('model', model)}" + "".join(f" -p {param}" for param in params)


def parameter(name: str, value: str) -> str:
    """An option of `rmtscan query` that can be pasted into a shell, whatever the value holds."""
    return f" -p {in_shell(f'{name}={value}')}"


def in_shell(text: str) -> str:
    """A word for a shell, quoted where it has to be."""
    return shlex.quote(printable(text))
