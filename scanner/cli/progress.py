"""Progress of running work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from scanner.checkpoint.names import printable
from scanner.cli.loading import loaded
from scanner.engine.task import Task
from scanner.engine.work import Observer

if TYPE_CHECKING:
    from scanner.engine import ModelReport

#: Seconds between two plain lines.
_INTERVAL = 10.0
_COUNT = TextColumn("{task.fields[count]}", markup=False)


@contextmanager
def steps(stream: TextIO, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many steps of something without workers are done; nothing is printed within a second.

    Args:
        stream: where to print; on a terminal a bar, elsewhere plain lines, not before the first step.
        what: the work, as a present participle.
    """
    last = time.monotonic()
    with _bar(
        stream, what, BarColumn(), _COUNT, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    ) as shown:
        console, bar, task = shown

        def report(done: int, total: int) -> None:
            nonlocal last
            if bar is not None:
                bar.update(task, completed=done, total=total, count=f"{done}/{total}")
            elif time.monotonic() - last > _INTERVAL:
                last = time.monotonic()
                console.print(f"{printable(what)}: {done} of {total}", soft_wrap=True)

        yield report


@contextmanager
def waiting(stream: TextIO, what: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal that something without steps takes time; nothing is printed within a second, nor elsewhere.

    Args:
        stream: where to print.
        what: the work, as a present participle.

    Yields:
        A function that tells what is done now.
    """
    with _bar(stream, what, TimeElapsedColumn()) as (_, bar, task):

        def say(what: str) -> None:
            if bar is not None:
                bar.update(task, description=printable(what))

        yield say


@contextmanager
def spinner(stream: TextIO, what: str) -> Iterator[None]:
    """Show a spinner on a terminal after a second; stdout can be used meanwhile."""
    with _bar(stream, what, TimeElapsedColumn(), first=True):
        yield


@contextmanager
def _bar(
    stream: TextIO, what: str, *columns: ProgressColumn, first: bool = False
) -> Iterator[tuple[Console, Bar | None, TaskID]]:
    """Show a bar on a terminal after a second: what is done at once needs none."""
    if not first:
        loaded()
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        yield console, None, TaskID(0)
        return
    name = TextColumn("{task.description}", markup=False)
    bar = Bar(SpinnerColumn(), name, *columns, console=console, transient=True, redirect_stdout=False)
    task = bar.add_task(printable(what), total=None, count="")
    timer = threading.Timer(1.0, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield console, bar, task
    finally:
        timer.cancel()
        timer.join()
        bar.stop()


class Progress(Observer):
    """Prints the progress of a run. The bar advances by cost, so that its estimate of the remaining time is realistic."""

    def __init__(self, stream: TextIO) -> None:
        loaded()
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._bar: Bar | None = None
        self._bar_task: TaskID | None = None
        self._items = self._done = self._failed = 0
        self._more = ""  # `+` while further checkpoints are opened
        self._cost = self._cost_done = 0.0
        self._alive = 0
        self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._bar_task = None

    def _say(self, text: str) -> None:
        (self._bar.console if self._bar is not None else self._console).print(text, soft_wrap=True)

    def opening(self, reference: str) -> None:
        """A checkpoint is being opened."""
        self._say(f"reading {printable(reference)}")
        if self._bar is None and self._console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._bar.add_task("preparing", total=None)
            self._bar.start()

    def damaged(self, problem: str) -> None:
        """A committed result is computed again."""
        self._say(f"damaged: {problem}")

    def starting(self, items: int, cost: float, kept: int, what: str = "matrices and controls") -> None:
        """There is work."""
        self.stop()  # the bar of an earlier queue
        self._items, self._cost, self._more = items, cost, ""
        self._done, self._failed, self._cost_done, self._alive = 0, 0, 0.0, 0
        resumed = f" ({kept} have results from an earlier run)" if kept else ""
        self._say(f"{items} {what} to do{resumed}; starting workers")
        if self._console.is_terminal:
            self._bar = Bar(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[count]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar_task = self._bar.add_task("waiting for workers", total=cost, count=f"0/{items}")
            self._bar.start()

    def expecting(self, items: int, cost: float, kept: int, *, more: bool) -> None:
        """Further checkpoints were opened."""
        self._items, self._cost, self._more = items, cost, "+" if more else ""
        if self._bar is not None and self._bar_task is not None:
            self._bar.update(self._bar_task, total=cost, count=self._count)

    @property
    def _count(self) -> str:
        return f"{self._done}/{self._items}{self._more}"

    def workers(self, alive: int, wanted: int) -> None:
        """A worker has started or was lost."""
        lost = alive < self._alive
        self._alive = alive
        if lost:
            self._say(f"a worker was lost; {alive} of {wanted} left, its tasks are retried")
        elif not self._console.is_terminal and alive in {1, wanted}:
            self._say(f"{alive} of {wanted} workers ready")
        if self._bar is not None and self._bar_task is not None:
            self._bar.update(self._bar_task, description=f"{alive} worker{'s' if alive != 1 else ''}")

    def note(self, text: str) -> None:
        """Something about the workers."""
        self._say(f"note: {text}")

    def waiting(self, reason: str) -> None:
        """There is no worker."""
        self._say(f"{reason}; waiting (Ctrl-C keeps existing results)")

    def hung(self, tasks: list[str], seconds: float) -> None:
        """A worker exceeded its time limit."""
        names = ", ".join(printable(name) for name in tasks)
        self._say(f"no result within {seconds:.0f} s: the worker is replaced and its tasks are retried ({names})")

    def hashing(self, models: list[str]) -> None:
        """The commit waits for the hash of the files."""
        named = ", ".join(map(printable, models[:3])) + (" and others" if len(models) > 3 else "")
        self._say(f"every matrix is done; the files of {named} are hashed before the commit")

    def task_done(self, task: Task, *, failed: list[str]) -> None:
        """The results of a task are stored."""
        self._done += task.items
        self._failed += len(failed)
        self._cost_done += task.cost
        for name in failed:
            self._say(f"FAILED {printable(name)}")
        if self._bar is not None and self._bar_task is not None:
            self._bar.update(self._bar_task, completed=self._cost_done, count=self._count)
        elif time.monotonic() - self._last_line > _INTERVAL:
            self._last_line = time.monotonic()
            share = self._cost_done / self._cost if self._cost else 1.0
            known = f"{share:.0%} of the work{' that is known so far' if self._more else ''}"
            self._say(f"{self._done} of {self._items}{self._more} done ({known}), {self._failed} failed")

    def model_done(self, model: ModelReport) -> None:
        """A model is committed, was already in the store, or cannot be scanned."""
        if model.error is not None:
            self._say(f"error: cannot scan {printable(model.reference)}: {model.error}")
            return
        state = "committed" if model.new else "already in the store"
        counts = f"{model.analyzed} analyzed, {model.skipped_count} skipped, {model.failed} failed"
        self._say(f"{printable(model.model)} {state}: {counts}")
