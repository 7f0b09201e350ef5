"""Options of experiments that select matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from scanner.checkpoint import Selection

RolesOption = Annotated[str, typer.Option("--roles", metavar="ROLE,...", help="Only these roles.", show_default="all")]
LayersOption = Annotated[str, typer.Option(metavar="0-5,7", help="Only these blocks.", show_default="all")]

_MOST = 10_000


def split_names(text: str) -> tuple[str, ...]:
    """Split `a, b` into (a, b)."""
    return tuple(filter(None, (piece.strip() for piece in text.split(","))))


def one_of(names: tuple[str, ...], known: tuple[str, ...], option: str) -> tuple[str, ...]:
    """Return the names if all of them are known.

    Raises:
        typer.BadParameter: one is not.
    """
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint=option)
    return names


def parse_layers(text: str, word: str = "layer") -> tuple[int, ...]:
    """Parse `0-5`, `3` or `0-2,7`.

    Raises:
        typer.BadParameter: anything else.
    """
    found: list[int] = []
    for part in split_names(text):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise typer.BadParameter(f"{part!r} is not a {word} or a range like 0-5", param_hint=f"--{word}s")
        if int(last or first) - int(first) > _MOST:
            raise typer.BadParameter(f"{part!r} is a range of more than {_MOST:,} {word}s", param_hint=f"--{word}s")
        found += range(int(first), int(last if dash else first) + 1)
    return tuple(found)


def selection(roles: str, layers: str) -> Selection:
    """Make the selection.

    Raises:
        typer.BadParameter: an unknown role, or layers that are not numbers.
    """
    from scanner.checkpoint import ROLES, Selection

    return Selection(only=one_of(split_names(roles), ROLES, "--roles"), layers=parse_layers(layers))
