"""The interfaces of one kind of work and of an observer of its progress; the loop that runs it is in `scanner.engine.run`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scanner.engine.report import ModelReport
    from scanner.engine.task import Failure, Task
    from scanner.store import Store


class Observer:
    """Receives the progress of a command; every method does nothing unless overridden."""

    def opening(self, reference: str) -> None:
        """A checkpoint is being opened: its headers are read, its files are hashed."""

    def damaged(self, problem: str) -> None:
        """A committed result is not whole and is computed again."""

    def starting(self, items: int, cost: float, kept: int, what: str = "matrices and controls") -> None:
        """There is work: this number of `what` so far; `kept` more have results from an earlier run."""

    def expecting(self, items: int, cost: float, kept: int, *, more: bool) -> None:
        """The totals have changed, because further checkpoints were opened; `more`: they will change again."""

    def workers(self, alive: int, wanted: int) -> None:
        """A worker has started or was lost."""

    def note(self, text: str) -> None:
        """Something about the workers that a user should know, in one line."""

    def waiting(self, reason: str) -> None:
        """There is no worker, and nothing happens until one starts."""

    def hung(self, tasks: list[str], seconds: float) -> None:
        """The worker of these tasks returned nothing within its time limit and is replaced."""

    def dispatching(self) -> None:
        """The first worker is ready."""

    def hashing(self, models: list[str]) -> None:
        """Every matrix is done; these models are committed as soon as their files are hashed."""

    def task_done(self, task: Task, *, failed: list[str]) -> None:
        """The results of a task are stored; `failed` holds the names of the items without a result."""

    def model_done(self, model: ModelReport) -> None:
        """A model is committed, was already in the store, or cannot be scanned."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What `Work.done` and `Work.failed` return: names of items without a result, and tasks that follow."""

    failed: tuple[str, ...] = ()
    following: tuple[Task, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Found:
    """What `Work.more` returns: further tasks, and whether there may be others later."""

    tasks: tuple[Task, ...] = ()
    more: bool = False


class Work(ABC):
    """One kind of work: its tasks, and what to do with their results. Uses neither Ray nor a loop."""

    kind: str
    """Name in `rmtscan status`: scan, compare, ablate, ..."""
    unit: str = "tasks"
    """Name of the items that progress counts."""
    store: Store
    kept: int = 0
    """Number of items with results from earlier runs; `tasks` counts them."""
    start: Callable[[], None] | None = None
    """Called in every worker when it starts: loads what the first task would otherwise wait for."""

    mixes: bool = False
    """Whether workers with a GPU and workers without one share its tasks: decompositions in float64, whose speed is measured."""

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Names of the models."""

    @abstractmethod
    def tasks(self) -> Sequence[Task]:
        """Tasks without a result, in the order in which they are run."""

    def more(self, patience: float) -> Found:
        """Return tasks that were found since the last call; called again and again while the work runs.

        Args:
            patience: seconds to wait for a task if there is none.
        """
        return Found()

    def wanted(self, task: Task) -> bool:
        """Whether a task that waits in the queue is still needed."""
        return True

    def expected(self, tasks: Sequence[Task]) -> tuple[int, float]:
        """Number of items and cost of the tasks, including tasks that will follow from them."""
        return sum(task.items for task in tasks), sum(task.cost for task in tasks)

    def started(self, environment: dict[str, Any]) -> None:  # noqa: B027 (optional)
        """Workers are starting; `environment` describes them."""

    def check_inputs(self) -> None:  # noqa: B027 (optional)
        """Raise an error if a result must not be stored, because a file that it was made from has changed."""

    @abstractmethod
    def done(self, task: Task, value: Any) -> Stored:
        """Stage the result of a task."""

    @abstractmethod
    def failed(self, task: Task, failure: Failure) -> Stored:
        """Record that a task has no result."""

    def finish(self) -> None:  # noqa: B027 (optional)
        """Commit what is complete; called at the end even if there was no task."""

    def close(self) -> None:  # noqa: B027 (optional)
        """Release what the work holds; called at the end of a run, also after an error."""
