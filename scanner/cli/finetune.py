"""`rmtscan finetune`: what a model can still learn, or what is left of what it learned, without a decile of its singular values."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from scanner.cli import options
from scanner.cli.output import DEFAULT_STORE, FormatOption, StoreOption, note, write
from scanner.cli.run import terminate_like_interrupt
from scanner.cli.selection import one_of, parse_layers, split_names
from scanner.cli.texts import ColumnOption, SecondOption, TextOption, WhereOption, text_source
from scanner.engine.options import PoolOptions

if TYPE_CHECKING:
    from scanner.experiments.finetuning import FineTuneReport


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "finetune", finetune, aliases={"--length": "--window"})


def finetune(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A model: a folder, a GGUF file, org/name[@revision].")],
    task: TextOption,
    *,
    store: StoreOption = DEFAULT_STORE,
    order: Annotated[
        str,
        typer.Option(
            metavar="ORDER,...", help="remove-first, tune-first, none; the untouched runs (none) are always among them."
        ),
    ] = "remove-first,tune-first",
    deciles: Annotated[
        str, typer.Option(metavar="1,...,10", help="What is removed: 1 the smallest singular values, 10 the largest.")
    ] = "1,5,10",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Seeds of head, dropout and the examples' order.")] = 3,
    roles: Annotated[
        str, typer.Option(metavar="ROLE,...", help="The matrices it is removed from.", show_default="all in blocks")
    ] = "",
    column: ColumnOption = None,
    second: SecondOption = None,
    label: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column with the labels.", show_default="found by its name")
    ] = None,
    where: WhereOption = None,
    examples: Annotated[
        int | None, typer.Option(min=2, help="Train on so many at most.", show_default="all but the test part")
    ] = None,
    test_share: Annotated[float, typer.Option(help="Share of the texts that accuracy is measured on.")] = 0.2,
    window: Annotated[int, typer.Option(min=8, help="Longest sequence, in tokens.")] = 128,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the examples.")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 32,
    rate: Annotated[float, typer.Option("--lr", help="Highest learning rate of AdamW.")] = 5e-5,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep the tuned models there, as RUN-none-seed0 and so on, to be scanned and compared.",
            show_default="not kept",
        ),
    ] = None,
    pool: PoolOptions,
    form: FormatOption = "table",
) -> None:
    """Fine-tune a model on labelled texts with a decile of its singular values removed before it or after it.

    Every point (order, decile, seed) is stored as soon as it is measured (table finetunes) and never computed twice. Prints query
    finetune_by_decile: mean accuracy, and how far it is from the untouched runs in units of their spread.

    Examples:

        rmtscan finetune ./encoder --task reviews.csv --where source=rotten_tomatoes --deciles 1,5,10 --seeds 3

        rmtscan finetune org/model --task boolq.jsonl --column question --second passage --label answer --order remove-first

        rmtscan finetune ./encoder --task sst2.tsv --order none --keep tuned && rmtscan compare ./encoder tuned/*-none-seed0
    """
    from scanner.checkpoint import ROLES
    from scanner.cli.progress import Progress
    from scanner.experiments.finetune_task import ORDERS
    from scanner.experiments.finetune_training import Recipe
    from scanner.experiments.finetuning import finetune as run
    from scanner.store import open_store

    wanted = one_of(split_names(order), ORDERS, "--order")
    source = text_source(task, column, second, where, label)
    started = time.monotonic()
    with terminate_like_interrupt(), Progress(sys.stderr) as progress:
        try:
            report = run(
                base,
                source,
                orders=[one for one in ORDERS if one in wanted],
                deciles=parse_layers(deciles, "decile"),
                seeds=seeds,
                roles=one_of(split_names(roles), ROLES, "--roles"),
                recipe=Recipe(epochs=epochs, batch=batch, rate=rate),
                length=window,
                examples=examples,
                test_share=test_share,
                folder=keep,
                store=store,
                pool=pool,
                observer=progress,
            )
        except KeyboardInterrupt:
            progress.stop()
            note(f"\ninterrupted: existing results are kept in {store}; the same command resumes")
            raise
    write(open_store(report.store).query("finetune_by_decile", run=report.run_id), form)
    _tell(report, time.monotonic() - started)
    if report.failed:
        raise typer.Exit(3)


def _tell(report: FineTuneReport, seconds: float) -> None:
    from scanner.checkpoint.names import printable

    for point, reason in sorted(report.failed.items()):
        note(f"  FAILED {point}: {printable(reason)}")
    for point, count in sorted(report.smaller.items()):
        note(f"  {point}: batches did not fit into memory at once, {count} examples at a time did")
    note(
        f"trained on {report.train} texts, tested on {report.test}; {len(report.classes)} classes, the commonest is "
        f"{report.majority:.1%} of the test"
    )
    note(
        f"run {report.run_id}: {report.points} points, {report.kept} of them from earlier runs; store: {report.store} "
        f"({seconds:.0f} s)"
    )
