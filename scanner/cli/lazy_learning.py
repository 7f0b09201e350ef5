"""`rmtscan lazy-learning`: what small singular values mean to networks in the rich and in the lazy regime."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from scanner.cli import options
from scanner.cli.output import DEFAULT_STORE, FormatOption, StoreOption, note, write
from scanner.cli.run import terminate_like_interrupt
from scanner.cli.selection import split_names
from scanner.engine.options import PoolOptions


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    options.register(app, "lazy-learning", lazy_learning, aliases={"--rate": "--lr"})


def lazy_learning(
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="CIFAR-10's folder cifar-10-batches-py, or an .npz with x_train, y_train, x_test, y_test.",
            show_default="the digits of scikit-learn",
        ),
    ] = None,
    *,
    store: StoreOption = DEFAULT_STORE,
    alpha: Annotated[
        str, typer.Option(metavar="A,...", help="Scales of the logits: 1 is rich, large is lazy.")
    ] = "1,15",
    frozen: Annotated[
        str,
        typer.Option(
            metavar="LAYER,...", help="One more network, at alpha 1, whose layers 0 to 3 are frozen; '' for none."
        ),
    ] = "0,1,2",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Networks of each kind.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training pictures.")] = 60,
    rate: Annotated[float, typer.Option("--lr", help="Learning rate of stochastic gradient descent.")] = 0.05,
    batch: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 64,
    pool: PoolOptions,
    force: Annotated[bool, typer.Option("--force", help="Train again what the store already holds.")] = False,
    form: FormatOption = "table",
) -> None:
    """Train small networks in the rich and the lazy regime and take singular values from them (v1, App. A).

    The smallest by number, the smallest by their share of the sum, and as many at random. Every network is stored as soon as it is
    measured (table ablations), and none is trained twice. Prints
    the rows of query lazy_learning: accuracy by regime and set, of which a table shows a fifth removed.

    Examples:

        rmtscan lazy-learning

        rmtscan lazy-learning --data cifar-10-batches-py --alpha 1,4,15 --seeds 5
    """
    from scanner.cli.progress import Progress
    from scanner.experiments.lazy_learning import lazy_learning as run
    from scanner.experiments.mlp import Regime, Training
    from scanner.store import open_store

    try:
        regimes = [Regime(alpha=float(one)) for one in split_names(alpha)]
    except ValueError:
        raise typer.BadParameter(f"{alpha!r} is not numbers like 1,15", param_hint="--alpha") from None
    try:
        layers = tuple(sorted({int(one) for one in split_names(frozen)}))
    except ValueError:
        raise typer.BadParameter(f"{frozen!r} is not layers like 0,1,2", param_hint="--frozen") from None
    if layers:
        regimes.append(Regime(frozen=layers))
    started = time.monotonic()
    with terminate_like_interrupt(), Progress(sys.stderr) as progress:
        try:
            report = run(
                store=store,
                data=data,
                regimes=regimes,
                seeds=seeds,
                training=Training(epochs=epochs, batch=batch, rate=rate),
                pool=pool,
                observer=progress,
                force=force,
            )
        except KeyboardInterrupt:
            progress.stop()
            note(f"\ninterrupted: existing results are kept in {store}; the same command resumes")
            raise
    shown = 20.0 if form == "table" else None
    answer = open_store(report.store).query("lazy_learning", runs=",".join(report.run_ids), percent=shown)
    write(answer, form)
    if shown is not None:
        note(
            f"all sets: rmtscan query lazy_learning --store {report.store}; as a figure: rmtscan plot lazy -o lazy.pdf"
        )
    for line in report.failed:
        note(f"  FAILED {line}")
    note(
        f"store: {report.store} ({len(report.run_ids)} networks, {report.kept} of them from earlier runs, "
        f"{time.monotonic() - started:.0f} s)"
    )
    if report.failed:
        raise typer.Exit(3)
