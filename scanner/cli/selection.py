"""Options that say which matrices are meant, shared by the verbs that look into a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from scanner.checkpoint import Selection

OnlyOption = Annotated[str, typer.Option(metavar="ROLE,...", help="Only these roles.", show_default=False)]
LayersOption = Annotated[str, typer.Option(metavar="0-5,7", help="Only these blocks.", show_default=False)]
EmbeddingsOption = Annotated[bool, typer.Option("--embeddings", help="Embeddings and the output head, too.")]
HeadsOption = Annotated[
    bool, typer.Option("--heads", help="Attention heads one by one: rows of query, key, value, columns of attn_out.")
]

_MOST_LAYERS = 10_000


def split_names(text: str) -> tuple[str, ...]:
    """`a, b` as (a, b)."""
    return tuple(filter(None, (piece.strip() for piece in text.split(","))))


def one_of(names: tuple[str, ...], known: tuple[str, ...], option: str) -> tuple[str, ...]:
    """The names, if all of them are known.

    Raises:
        typer.BadParameter: one is not.
    """
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}", param_hint=option)
    return names


def parse_layers(text: str) -> tuple[int, ...]:
    """`0-5`, `3` or `0-2,7` as indices.

    Raises:
        typer.BadParameter: anything else.
    """
    found: list[int] = []
    for part in split_names(text):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise typer.BadParameter(f"{part!r} is not a layer or a range like 0-5", param_hint="--layers")
        if int(last or first) - int(first) > _MOST_LAYERS:
            raise typer.BadParameter(f"{part!r} is more layers than any model has", param_hint="--layers")
        found += range(int(first), int(last if dash else first) + 1)
    return tuple(found)


def selection(only: str, layers: str, embeddings: bool, heads: bool) -> Selection:
    """What the options select.

    Raises:
        typer.BadParameter: an unknown role, or layers that are no numbers.
    """
    from scanner.checkpoint import ROLES, Selection

    return Selection(
        only=one_of(split_names(only), ROLES, "--only"),
        layers=parse_layers(layers),
        embeddings=embeddings,
        heads=heads,
    )
