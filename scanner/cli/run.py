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

from scanner.cli import logs

if TYPE_CHECKING:
    from scanner.cli.progress import Progress
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
    log_format: logs.LogFormat | None = None,
) -> None:
    """Call the library with progress on stderr, show what it reports, and end with its exit status.

    Args:
        call: does the work and reports its progress to the observer.
        show: prints the results.
        store: where the results are kept.
        log_format: format of the messages on stderr; None: that of the environment, or text.

    Raises:
        typer.Exit: the exit status of the report, if it is not 0.
        KeyboardInterrupt: interrupted by Ctrl-C or SIGTERM; existing results are kept.
    """
    logs.use(log_format)
    started = time.monotonic()
    with terminate_like_interrupt(), _observer() as progress:
        try:
            report = call(progress)
        except KeyboardInterrupt:
            progress.stop()
            text = f"\ninterrupted: existing results are kept in {store}; the same command resumes"
            logs.say(text, event="interrupted", level="warning", store=store)
            raise
    show(report)
    seconds = time.monotonic() - started
    logs.say(
        f"store: {report.store} ({seconds:.0f} s)",
        event="summary",
        level="error" if report.exit_status else "info",
        store=report.store,
        seconds=round(seconds, 3),
        exit_status=report.exit_status,
    )
    if report.exit_status:
        raise typer.Exit(report.exit_status)


def _observer() -> Progress | logs.Events:
    if logs.is_json():
        return logs.Events()
    from scanner.cli.progress import Progress

    return Progress(sys.stderr)


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
