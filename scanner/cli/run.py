"""Runs of verbs that compute: progress, interruption, closing report and exit status."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Protocol, TypeVar

import typer

from scanner.cli.output import note

if TYPE_CHECKING:
    from scanner.engine import Observer


class Report(Protocol):
    """What every verb reports at its end."""

    @property
    def store(self) -> str:
        """Where the results are."""

    @property
    def exit_status(self) -> int:
        """0: done; 1: an error that the user can act on; 3: finished, but some items failed."""


AnyReport = TypeVar("AnyReport", bound=Report)


def run_verb(
    call: Callable[[Observer], AnyReport],
    show: Callable[[AnyReport], None],
    *,
    store: str,
) -> None:
    """Call the library with progress on stderr, show what it reports, and end with its exit status.

    Args:
        call: does the work and reports its progress to the observer.
        show: prints the results.
        store: where the results are kept.

    Raises:
        typer.Exit: the exit status of the report, if it is not 0.
        KeyboardInterrupt: interrupted by Ctrl-C or SIGTERM; existing results are kept.
    """
    from scanner.cli.progress import Progress

    started = time.monotonic()
    with terminate_like_interrupt(), Progress(sys.stderr) as progress:
        try:
            report = call(progress)
        except KeyboardInterrupt:
            progress.stop()
            note(f"\ninterrupted: existing results are kept in {store}; the same command resumes")
            raise
    show(report)
    note(f"store: {report.store} ({time.monotonic() - started:.0f} s)")
    if report.exit_status:
        raise typer.Exit(report.exit_status)


@contextlib.contextmanager
def terminate_like_interrupt() -> Iterator[None]:
    """Treat SIGTERM, which schedulers and containers send, like Ctrl-C: results are kept, workers end."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
