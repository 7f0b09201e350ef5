"""Messages on stderr: plain lines, or one JSON object per line with time, level, event and fields."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from scanner.cli.loading import loaded
from scanner.engine.task import Task
from scanner.engine.work import Observer

if TYPE_CHECKING:
    from scanner.engine import ModelReport

LogFormat = Literal["text", "json"]
Level = Literal["info", "warning", "error"]
VARIABLE = "RMTSCAN_LOG_FORMAT"
LogFormatOption = Annotated[
    LogFormat | None,
    typer.Option(
        "--log-format",
        envvar=VARIABLE,
        help="Format of the messages on stderr: text, or json for one object per line.",
        show_default="text",
    ),
]
#: Seconds between two reports of progress.
_INTERVAL = 10.0

_format: LogFormat = "text"


def use(chosen: LogFormat | None = None) -> None:
    """Choose the format of the messages that follow; None: that of the environment, or text."""
    global _format
    _format = "json" if (chosen or os.environ.get(VARIABLE)) == "json" else "text"


def is_json() -> bool:
    """Whether messages are JSON objects."""
    return _format == "json"


def say(text: str, *, event: str = "note", level: Level = "info", **fields: object) -> None:
    """Print a message: the text alone, or an object with `time`, `level`, `event`, `message` and the fields.

    In an object, the text is stripped, and characters that are not ASCII or not printable are escapes.
    """
    loaded()
    line = _line(event, level, {"message": text.strip(), **fields}) if is_json() else text
    print(line, file=sys.stderr, flush=True)


def say_error(text: str) -> None:
    """Print why the command cannot go on: `error: ` and the text, or an object of the event `error`."""
    say(text if is_json() else f"error: {text}", event="error", level="error")


def _line(event: str, level: Level, fields: dict[str, object]) -> str:
    import json

    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": now, "level": level, "event": event, **fields}, default=str, ensure_ascii=True)


class Events(Observer):
    """Prints the progress of a run as JSON objects; names from checkpoints are values and never parts of a message."""

    def __init__(self) -> None:
        self._items = self._done = self._failed = self._alive = 0
        self._cost = self._cost_done = 0.0
        self._more = False  # whether further checkpoints are opened
        self._told = time.monotonic()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Do nothing: there is no bar to remove."""

    def _emit(self, event: str, *, level: Level = "info", **fields: object) -> None:
        print(_line(event, level, fields), file=sys.stderr, flush=True)

    def opening(self, reference: str) -> None:
        """A checkpoint is being opened."""
        self._emit("opening", reference=reference)

    def damaged(self, problem: str) -> None:
        """A committed result is computed again."""
        self._emit("damaged", level="warning", problem=problem)

    def starting(self, items: int, cost: float, kept: int, what: str = "matrices and controls") -> None:
        """The queue is complete."""
        self._items, self._cost, self._more = items, cost, False
        self._done, self._failed, self._cost_done, self._alive = 0, 0, 0.0, 0
        self._emit("starting", items=items, kept=kept, what=what, cost_gflop=round(cost / 1e9, 3))

    def expecting(self, items: int, cost: float, kept: int, *, more: bool) -> None:
        """Further checkpoints were opened."""
        self._items, self._cost, self._more = items, cost, more
        self._emit("expecting", items=items, kept=kept, more=more, cost_gflop=round(cost / 1e9, 3))

    def workers(self, alive: int, wanted: int) -> None:
        """A worker has started or was lost."""
        lost = alive < self._alive
        self._alive = alive
        self._emit(
            "worker_lost" if lost else "workers", level="warning" if lost else "info", ready=alive, wanted=wanted
        )

    def note(self, text: str) -> None:
        """Something about the workers."""
        self._emit("note", message=text)

    def waiting(self, reason: str) -> None:
        """There is no worker."""
        self._emit("waiting", level="warning", reason=reason)

    def hung(self, tasks: list[str], seconds: float) -> None:
        """A worker exceeded its time limit."""
        self._emit("hung", level="warning", tasks=tasks, limit_seconds=seconds)

    def dispatching(self) -> None:
        """The first worker is ready."""
        self._emit("dispatching")

    def hashing(self, models: list[str]) -> None:
        """The commit waits for the hash of the files."""
        self._emit("hashing", models=models)

    def task_done(self, task: Task, *, failed: list[str]) -> None:
        """The results of a task are stored."""
        self._done += task.items
        self._failed += len(failed)
        self._cost_done += task.cost
        for name in failed:
            self._emit("failed", level="error", item=name, task=task.name)
        if time.monotonic() - self._told >= _INTERVAL:
            self._told = time.monotonic()
            share = self._cost_done / self._cost if self._cost else 1.0
            self._emit(
                "progress",
                done=self._done,
                items=self._items,
                more=self._more,
                failed=self._failed,
                share_of_cost=round(share, 4),
            )

    def model_done(self, model: ModelReport) -> None:
        """A model is committed, was already in the store, or cannot be scanned."""
        if model.error is not None:
            self._emit("model_error", level="error", reference=model.reference, error=str(model.error))
            return
        self._emit(
            "model_done",
            level="warning" if model.failed else "info",
            reference=model.reference,
            model=model.model,
            revision=model.revision,
            scan_id=model.scan_id,
            analyzed=model.analyzed,
            skipped=model.skipped_count,
            failed=model.failed,
            new=model.new,
        )
