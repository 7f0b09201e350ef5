"""`rmtscan slicing`: what a model loses when its norms leave out directions of the activations."""

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
from scanner.cli.selection import parse_layers
from scanner.cli.texts import ColumnOption, DtypeOption, SecondOption, TextOption, WhereOption, text_source
from scanner.engine.options import PoolOptions

Order = Literal["before", "after", "both"]


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "slicing", slicing)


def slicing(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="A model: a folder, a GGUF file, org/name[@revision].")
    ],
    text: TextOption,
    *,
    store: StoreOption = DEFAULT_STORE,
    order: Annotated[
        Order, typer.Option(help="Project the input of the norms, what they have divided, or each in turn.")
    ] = "both",
    deciles: Annotated[
        str, typer.Option(metavar="A-B,...", help="Which tenths, one at a time; 1 has the smallest eigenvalues.")
    ] = "1-10",
    metric: MetricOption = "perplexity",
    tokens: TokensOption = DEFAULT_TOKENS,
    window: WindowOption = None,
    examples: ExamplesOption = DEFAULT_EXAMPLES,
    column: ColumnOption = None,
    second: SecondOption = None,
    label: LabelOption = None,
    where: WhereOption = None,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="FILE|DATASET", help="The text of the covariances.", show_default="the measured one"),
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(min=2, help="How many tokens of it.")] = 4096,
    dtype: DtypeOption = "float32",
    pool: PoolOptions,
    form: FormatOption = "table",
) -> None:
    """Leave out a tenth of the directions of the activations around every norm, and measure what the model loses (v1, App. F).

    The directions are eigenvectors of the activations' covariance at each norm, as in SliceGPT. A point is one file in the table
    ablations, written at once and never computed twice. Prints query slicing.

    Examples:

        rmtscan slicing model.gguf --text novel.txt

        rmtscan slicing ./encoder --task reviews.csv --metric accuracy --order after --deciles 1,10
    """
    from scanner.engine import ScanObserver
    from scanner.experiments.measures import MeasureRequest
    from scanner.experiments.point_run import PointReport
    from scanner.experiments.slicing import ORDERS
    from scanner.experiments.slicing import Order as Place
    from scanner.experiments.slicing_run import slicing as run_slices
    from scanner.experiments.texts import TextSource

    wanted = MeasureRequest(
        metric=metric,
        text=text_source(text, column, second, where, label),
        tokens=tokens,
        examples=examples,
        window=window,
    )
    tenths = parse_layers(deciles, "decile")
    orders: tuple[Place, ...] = tuple(one for one in ORDERS if order in ("both", one))

    def run(observer: ScanObserver) -> PointReport:
        return run_slices(
            reference,
            wanted,
            orders=orders,
            deciles=tenths,
            calibration=TextSource(reference=calibration) if calibration is not None else None,
            calibration_tokens=calibration_tokens,
            store=store,
            dtype=dtype,
            pool=pool,
            observer=observer,
        )

    run_points(run, query="slicing", store=store, form=form)
