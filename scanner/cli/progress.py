"""Progress of a scan: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from scanner.checkpoint.names import printable
from scanner.engine import ModelReport, ScanObserver
from scanner.engine.scan import ControlTask, MatrixTask
from scanner.engine.task import Task

#: Seconds between two plain lines.
_INTERVAL = 10.0


class Progress(ScanObserver):
    """What a person sees while a scan runs. The bar moves by the cost of what is done, so its estimate of the rest is honest."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._bar: Bar | None = None
        self._bar_task: TaskID | None = None
        self._items = self._done = self._failed = 0
        self._cost = self._cost_done = 0.0
        self._workers = ""
        self._last_line = time.monotonic()
        self.stored = 0
        """Matrices in the store of this command's scans, from this run and earlier ones; known once `planned`."""
        self.planned = False

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

    def starting(self, items: int, cost: float, kept: int, what: str = "matrices and controls") -> None:
        """The queue is complete."""
        self.stop()  # of an earlier queue
        self._items, self._cost, self.stored, self.planned = items, cost, kept, True
        self._done, self._failed, self._cost_done, self._workers = 0, 0, 0.0, ""
        resumed = f" ({kept} are there from an earlier run)" if kept else ""
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

    def workers(self, alive: int, wanted: int) -> None:
        """A worker came up or was lost."""
        lost = self._workers and alive < int(self._workers.split("/")[0])
        self._workers = f"{alive}/{wanted}"
        if lost:
            self._say(f"a worker was lost; {alive} of {wanted} left, its matrices are tried again")
        elif not self._console.is_terminal and alive in {1, wanted}:
            self._say(f"{alive} of {wanted} workers ready")
        if self._bar is not None and self._bar_task is not None:
            self._bar.update(self._bar_task, description=f"{alive} worker{'s' if alive != 1 else ''}")

    def waiting(self, reason: str) -> None:
        """Nothing happens until a worker comes up."""
        self._say(f"{reason}; waiting (Ctrl-C keeps what is finished)")

    def task_done(self, task: Task, *, failed: list[str]) -> None:
        """The results of a task are in the store."""
        matrices = task.refs if isinstance(task, MatrixTask) else ()
        self._done += max(1, len(matrices))
        self._failed += len(failed)
        self._cost_done += task.cost
        self.stored += max(0, len(matrices) - len(failed))
        if isinstance(task, ControlTask) and failed:
            self._say(f"FAILED random control {task.name}: the next scan tries it again")
        for ref in matrices:
            if ref.key in failed:
                self._say(f"FAILED {printable(ref.tensor)}")
        if self._bar is not None and self._bar_task is not None:
            self._bar.update(self._bar_task, completed=self._cost_done, count=f"{self._done}/{self._items}")
        elif time.monotonic() - self._last_line > _INTERVAL:
            self._last_line = time.monotonic()
            share = self._cost_done / self._cost if self._cost else 1.0
            self._say(f"{self._done} of {self._items} done ({share:.0%} of the work), {self._failed} failed")

    def model_done(self, model: ModelReport) -> None:
        """A model is committed, was there already, or cannot be scanned."""
        if model.error is not None:
            self._say(f"error: cannot scan {printable(model.reference)}: {model.error}")
            return
        state = "committed" if model.new else "already in the store"
        counts = f"{model.analysed} analysed, {model.skipped_count} skipped, {model.failed} failed"
        self._say(f"{printable(model.model)} {state}: {counts}")
