"""Options that say which text a model reads, shared by the verbs that run models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from scanner.experiments.texts import TextSource

TextOption = Annotated[
    str,
    typer.Option(
        "--text",
        "--task",
        metavar="FILE|DATASET",
        help="A text file, a .jsonl .csv .tsv .parquet table, or owner/name[:config[:split]] on the Hub.",
        show_default=False,
    ),
]
ColumnOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="The table's column with the text.", show_default="found by its name")
]
SecondOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="A column with a second text: pairs.", show_default="none")
]
WhereOption = Annotated[
    str | None, typer.Option(metavar="COLUMN=VALUE", help="Only the rows that have it.", show_default="all rows")
]


Dtype = Literal["float32", "bfloat16", "float16", "float64"]
DtypeOption = Annotated[Dtype, typer.Option(help="Precision of the model's weights and activations.")]


def text_source(
    text: str, column: str | None, second: str | None, where: str | None, label: str | None = None
) -> TextSource:
    """What the options name.

    Raises:
        typer.BadParameter: `--where` without an equals sign.
    """
    from scanner.experiments.texts import TextSource

    kept = None
    if where is not None:
        name, equals, value = where.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{where!r} is not COLUMN=VALUE", param_hint="--where")
        kept = (name, value)
    return TextSource(reference=text, column=column, second=second, label=label, where=kept)
