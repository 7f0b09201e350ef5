"""What the verbs that measure points (`ablate`, `slicing`) share: the options of the measure, and how a run is told."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from scanner.cli.output import Format, note, write
from scanner.cli.run import terminate_like_interrupt

if TYPE_CHECKING:
    from scanner.engine import ScanObserver
    from scanner.experiments.point_run import PointReport


Metric = Literal["perplexity", "accuracy", "kl"]
MetricOption = Annotated[Metric, typer.Option(help="What is measured.")]
TokensOption = Annotated[int, typer.Option(min=2, help="Tokens of the text (perplexity, kl).")]
WindowOption = Annotated[
    int | None, typer.Option(min=2, help="Tokens in a window.", show_default="512, or what the model takes")
]
ExamplesOption = Annotated[int, typer.Option(min=2, help="Examples (accuracy), the same number of each class.")]
LabelOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The column with the labels (accuracy).", show_default="found by its name"),
]
DEFAULT_TOKENS, DEFAULT_EXAMPLES = 4096, 1000


def run_points(run: Callable[[ScanObserver], PointReport], *, query: str, store: str, form: Format) -> None:
    """Run points with progress on stderr, print what the query says of them, and what failed.

    Raises:
        typer.Exit: status 3 when points failed.
    """
    from scanner.cli.progress import Progress
    from scanner.store import open_store

    started = time.monotonic()
    with terminate_like_interrupt(), Progress(sys.stderr) as progress:
        try:
            report = run(progress)
        except KeyboardInterrupt:
            progress.stop()
            note(f"\ninterrupted: existing results are kept in {store}; the same command resumes")
            raise
    write(open_store(store).query(query, run=report.run_id), form)
    for name, why in sorted(report.failed.items()):
        note(f"  FAILED {name}: {why}")
    note(report.measured)
    note(
        f"run {report.run_id}: {report.points} points, {report.kept} of them from earlier runs, {len(report.failed)} failed; "
        f"store: {report.store} ({time.monotonic() - started:.0f} s)"
    )
    if report.failed:
        raise typer.Exit(3)
