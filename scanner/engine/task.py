"""Tasks: the units of work that a worker runs, and what a task receives and returns."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from scanner.errors import ChangedError, ScannerError

Made = TypeVar("Made")

#: Stages whose seconds are counted; `compute` is everything of a computation that is no stage of its own.
STAGES = ("read", "decompose", "test", "compute", "write")

#: Time limit of tasks that do not estimate their own: no result within a day means that the worker hangs.
LONGEST_SECONDS = 86_400.0


class Context(Protocol):
    """What a worker offers to the task that it runs."""

    @property
    def device(self) -> str:
        """Where tensors belong: `cpu` or `cuda`."""

    def computing(self) -> AbstractContextManager[float]:
        """Wait until no other task of this worker computes and limit BLAS to its threads; yields the start time in seconds."""

    def resident(self, slot: str, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return the object that this worker keeps in a slot; another key drops it first and then makes a new one.

        To be called while computing, because the tasks of a worker share its slots.
        """

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Count the seconds spent inside, without those of other stages within it, under one of `STAGES`."""

    def seconds(self, name: str) -> float:
        """Seconds counted under a stage so far, by this task."""

    def count_bytes(self, count: int) -> None:
        """Count bytes read by this task."""


class Task(Protocol):
    """A unit of work: small, picklable, with a result that does not depend on when and where it runs."""

    @property
    def name(self) -> str:
        """Unique within a run; used in messages."""

    @property
    def cost(self) -> float:
        """Expected work, in units that only have to agree within one run."""

    @property
    def precedes(self) -> bool:
        """Whether it runs before larger tasks, because others wait for its result."""
        return False

    @property
    def items(self) -> int:
        """Number of things that progress counts: matrices of a scan, for example."""
        return 1

    @property
    def family(self) -> str | None:
        """Tasks of one family prefer the same worker, because it keeps what they share; None: no preference."""
        return None

    @property
    def memory(self) -> float:
        """Bytes that its worker needs in all; 0: unknown, and nothing is declared to Ray."""
        return 0.0

    @property
    def device_memory(self) -> float:
        """Bytes that it needs on a GPU."""
        return 0.0

    @property
    def spreads(self) -> bool:
        """Whether it is so large that more BLAS threads make it faster."""
        return False

    @property
    def time_limit(self) -> float | None:
        """Seconds after which a worker that has returned nothing is considered hung; None: no limit."""
        return LONGEST_SECONDS

    def run(self, context: Context) -> Any:
        """Compute the result in a worker. Exceptions become the `Failure` of the task."""


class TaskError(Exception):
    """Raised by a task to say in which stage it failed, and whether every other task would fail for the same reason."""

    def __init__(self, message: str, *, stage: str = "", fatal: bool = False) -> None:
        super().__init__(message, stage, fatal)
        self.message, self.stage, self.fatal = message, stage, fatal

    def __str__(self) -> str:
        return self.message


@contextmanager
def fatal_errors() -> Iterator[None]:
    """Mark every error inside as one that all other tasks would share."""
    try:
        yield
    except Exception as error:
        raise TaskError(one_line(error), fatal=True) from error


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a task has no result."""

    message: str
    """One line."""
    error: str = ""
    """Type of the exception, or `WorkerLost`."""
    stage: str = ""
    """Where it happened, if the task said so."""
    fatal: bool = False
    """Every other task would fail for the same reason: the run ends."""
    changed: bool = False
    """A file is not the one that was hashed (`ChangedError`): what was read from it does not count."""
    full: bool = False
    """The memory of a GPU did not suffice."""
    transient: bool = False
    """The next run may succeed."""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Describe an exception."""
        if isinstance(error, TaskError):
            cause = error.__cause__
            name = type(cause).__name__ if cause is not None else type(error).__name__
            changed = isinstance(cause, ChangedError)
            return cls(message=error.message, error=name, stage=error.stage, fatal=error.fatal, changed=changed)
        import torch  # the command line imports this module, and the worker has it

        full = isinstance(error, torch.OutOfMemoryError)
        changed = isinstance(error, ChangedError)
        return cls(message=one_line(error), error=type(error).__name__, changed=changed, full=full, transient=full)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a worker returns for a task: a value or a failure, and what was counted on the way."""

    value: Any = None
    failure: Failure | None = None
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage."""
    bytes_read: int = 0


def one_line(error: Exception) -> str:
    """Describe an exception in one line: the message of a ScannerError; of any other its type and the first line."""
    if isinstance(error, ScannerError):
        return str(error)
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
