"""`rmtscan ablate`: what a model loses without some of its singular values."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from scanner.cli import options
from scanner.cli.output import DEFAULT_STORE, FormatOption, StoreOption
from scanner.cli.points import (
    DEFAULT_EXAMPLES,
    DEFAULT_TOKENS,
    ExamplesOption,
    LabelOption,
    MetricOption,
    TokensOption,
    WindowOption,
    run_points,
)
from scanner.cli.selection import LayersOption, one_of, parse_layers, split_names
from scanner.cli.texts import ColumnOption, DtypeOption, SecondOption, TextOption, WhereOption, text_source
from scanner.engine.options import PoolOptions

By = Literal["role", "layer", "all"]


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "ablate", ablate)


def ablate(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="A model: a folder, a GGUF file, org/name[@revision].")
    ],
    text: TextOption,
    *,
    store: StoreOption = DEFAULT_STORE,
    roles: Annotated[str, typer.Option(metavar="ROLE,...", help="Roles that are changed.", show_default="all")] = "",
    layers: LayersOption = "",
    by: Annotated[
        By,
        typer.Option(
            help="A point for each role (in all blocks), for each block (all roles), or for all matrices at once."
        ),
    ] = "role",
    sets: Annotated[
        str,
        typer.Option(
            metavar="SET,...",
            help="deciles, decile:1..10, regions, region:left|bulk|right, pruning, smallest:P, most-random:P (per cent), random, "
            "or A:B (ranks A up to B, 0 the largest).",
        ),
    ] = "deciles",
    random_sets: Annotated[
        int, typer.Option("--random", min=0, max=1000, help="Random sets of the same size beside each set.")
    ] = 1,
    metric: MetricOption = "perplexity",
    tokens: TokensOption = DEFAULT_TOKENS,
    window: WindowOption = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens from window to window.", show_default="the window")
    ] = None,
    examples: ExamplesOption = DEFAULT_EXAMPLES,
    column: ColumnOption = None,
    second: SecondOption = None,
    label: LabelOption = None,
    where: WhereOption = None,
    prompt: Annotated[
        str, typer.Option(help="What a language model is asked (accuracy): {text}, {second}.")
    ] = "{text}\\nLabel:",
    answers: Annotated[
        str,
        typer.Option(
            metavar="WORD,...",
            help="Its answers, in the order of the labels: integers by value, others alphabetically.",
            show_default="the labels",
        ),
    ] = "",
    dtype: DtypeOption = "float32",
    pool: PoolOptions,
    form: FormatOption = "table",
) -> None:
    """Take sets of singular values out of a model's weights and measure what it loses, beside random sets of the same size.

    A point is one file in the table ablations, written at once and never computed twice. Accuracy is that of the checkpoint's own
    classifier, of a language model's answers, or, for an encoder without either, of a linear probe on its features. Prints
    query ablation_curve.

    Examples:

        rmtscan ablate model.gguf --text novel.txt --sets deciles

        rmtscan ablate ./my-model --text novel.txt --roles mlp_down --by layer --sets regions --metric kl

        rmtscan ablate ./encoder --task reviews.csv --where source=rotten_tomatoes --metric accuracy --sets pruning --by all
    """
    from scanner.checkpoint import ROLES
    from scanner.engine import ScanObserver
    from scanner.experiments.ablation_run import ablate as run_ablations
    from scanner.experiments.measures import MeasureRequest
    from scanner.experiments.point_run import PointReport

    wanted = MeasureRequest(
        metric=metric,
        text=text_source(text, column, second, where, label),
        tokens=tokens,
        examples=examples,
        window=window,
        stride=stride,
        prompt=prompt.replace("\\n", "\n"),
        answers=split_names(answers),
    )

    def run(observer: ScanObserver) -> PointReport:
        return run_ablations(
            reference,
            wanted,
            roles=one_of(split_names(roles), ROLES, "--roles"),
            layers=parse_layers(layers),
            by=by,
            sets=sets,
            random_sets=random_sets,
            store=store,
            dtype=dtype,
            pool=pool,
            observer=observer,
        )

    run_points(run, query="ablation_curve", store=store, form=form)
