"""`rmtscan ablate`: what a model loses without some of its singular values."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from typing import Annotated

import typer

from scanner.cli.output import DEFAULT_STORE, Format, FormatOption, StoreOption, note, write
from scanner.cli.pool import AddressOption, GpusOption, WorkersOption, terminate_like_interrupt
from scanner.cli.selection import LayersOption, one_of, parse_layers, split_names
from scanner.cli.texts import ColumnOption, Dtype, DtypeOption, SecondOption, TextOption, WhereOption, text_source


class Metric(StrEnum):
    """What is measured."""

    perplexity = "perplexity"
    accuracy = "accuracy"
    kl = "kl"


class By(StrEnum):
    """What is changed at a time."""

    role = "role"
    layer = "layer"
    all = "all"


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command("ablate")(ablate)


def ablate(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="A model: a folder, a GGUF file, org/name[@revision].")
    ],
    text: TextOption,
    store: StoreOption = DEFAULT_STORE,
    roles: Annotated[str, typer.Option(metavar="ROLE,...", help="Roles that are changed.", show_default="all")] = "",
    layers: LayersOption = "",
    by: Annotated[
        By,
        typer.Option(
            help="A point for each role (in all blocks), for each block (all roles), or for all matrices at once."
        ),
    ] = By.role,
    sets: Annotated[
        str,
        typer.Option(
            metavar="SET,...", help="deciles, regions, pruning, random, or A:B (ranks A up to B, 0 the largest)."
        ),
    ] = "deciles",
    random_sets: Annotated[
        int, typer.Option("--random", min=0, help="Random sets of the same size beside each set.")
    ] = 1,
    metric: Annotated[Metric, typer.Option(help="What is measured.")] = Metric.perplexity,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of the text (perplexity, kl).")] = 4096,
    window: Annotated[
        int | None, typer.Option(min=2, help="Tokens in a window.", show_default="512, or what the model takes")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens from window to window.", show_default="the window")
    ] = None,
    examples: Annotated[int, typer.Option(min=2, help="Examples (accuracy), the same number of each class.")] = 1000,
    column: ColumnOption = None,
    second: SecondOption = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The column with the labels (accuracy).", show_default="found by its name"),
    ] = None,
    where: WhereOption = None,
    prompt: Annotated[
        str, typer.Option(help="What a language model is asked (accuracy): {text}, {second}.")
    ] = "{text}\\nLabel:",
    answers: Annotated[
        str,
        typer.Option(
            metavar="WORD,...", help="Its answers, in the order of the sorted labels.", show_default="the labels"
        ),
    ] = "",
    dtype: DtypeOption = Dtype.float32,
    address: AddressOption = None,
    workers: WorkersOption = None,
    gpus_per_worker: GpusOption = None,
    form: FormatOption = Format.table,
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
    from scanner.cli.progress import Progress
    from scanner.engine import PoolOptions
    from scanner.experiments.ablation_run import ablate as run_ablations
    from scanner.experiments.measures import MeasureRequest
    from scanner.store import open_store

    wanted = MeasureRequest(
        metric=metric.value,
        text=text_source(text, column, second, where, label),
        tokens=tokens,
        examples=examples,
        window=window,
        stride=stride,
        prompt=prompt.replace("\\n", "\n"),
        answers=split_names(answers),
    )
    pool = PoolOptions(address=address, workers=workers, gpus_per_worker=gpus_per_worker)
    started = time.monotonic()
    with terminate_like_interrupt(), Progress(sys.stderr) as progress:
        try:
            report = run_ablations(
                reference,
                wanted,
                roles=one_of(split_names(roles), ROLES, "--roles"),
                layers=parse_layers(layers),
                by=by.value,
                sets=sets,
                random_sets=random_sets,
                store=store,
                dtype=dtype.value,
                pool=pool,
                observer=progress,
            )
        except KeyboardInterrupt:
            progress.stop()
            note(f"\ninterrupted: finished points are kept in {store}; the same command goes on from there")
            raise
    write(open_store(store).query("ablation_curve", model=report.model, run=report.run_id), form)
    for name, why in sorted(report.failed.items()):
        note(f"  FAILED {name}: {why}")
    note(
        f"run {report.run_id}: {report.points} points, {report.kept} of them from earlier runs, {len(report.failed)} failed; "
        f"store: {report.store} ({time.monotonic() - started:.0f} s)"
    )
    if report.failed:
        raise typer.Exit(3)
