"""Progress of running work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from scanner.checkpoint.names import printable
from scanner.engine.task import Task
from scanner.engine.work import Observer

if TYPE_CHECKING:
    from scanner.engine import ModelReport

#: Seconds between two plain lines.
_INTERVAL = 10.0


@contextmanager
def steps(stream: TextIO, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many steps of something without workers are done; nothing is printed before the first step, nor within a second.

    Args:
        stream: where to print; on a terminal a bar, elsewhere plain lines.
        what: the work, as a present participle.
    """
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    begun = last = time.monotonic()
    task: TaskID | None = None

    def report(done: int, total: int) -> None:
        nonlocal last, task
        now = time.monotonic()
        if console.is_terminal:
            if task is None and now - begun > 1.0:
                task = bar.add_task(what, total=total)
                bar.start()
            if task is not None:
                bar.update(task, completed=done, total=total)
        elif now - last > _INTERVAL:
            last = now
            console.print(f"{what}: {done} of {total}", soft_wrap=True)

    try:
        yield report
    finally:
        if task is not None:
            bar.stop()


@contextmanager
def waiting(stream: TextIO, what: str) -> Iterator[None]:
    """Show on a terminal that something without steps takes time; nothing is printed within a second, nor elsewhere.

    Args:
        stream: where to print.
        what: the work, as a present participle.
    """
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        yield
        return
    bar = Bar(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True)
    bar.add_task(printable(what), total=None)
    timer = threading.Timer(1.0, bar.start)  # what is done at once needs no bar
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        bar.stop()


class Progress(Observer):
    """Prints the progress of a run. The bar advances by cost, so that its estimate of the remaining time is realistic."""

    def __init__(self, stream: TextIO) -> None:
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
            self._bar = None

    def _say(self, text: str) -> None:
        (self._bar.console if self._bar is not None else self._console).print(text, soft_wrap=True)

    def opening(self, reference: str) -> None:
        """A checkpoint is being opened."""
        self._say(f"reading {printable(reference)}")

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
