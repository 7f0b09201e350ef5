"""Prometheus metrics of running work, exported by Ray's metrics agent on the node of the driver."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util import metrics as ray_metrics

from scanner.engine.session import is_private


@dataclass(frozen=True, kw_only=True)
class Definition:
    """One metric: its name in Ray, and what it counts."""

    name: str
    kind: Literal["counter", "gauge"]
    about: str
    labels: tuple[str, ...] = ("kind",)

    @property
    def exported(self) -> str:
        """The name in Prometheus: Ray puts `ray_` before it, and Prometheus `_total` behind the name of a counter."""
        return f"ray_{self.name}{'_total' if self.kind == 'counter' else ''}"


DONE = Definition(
    name="rmtscan_matrices_done", kind="counter", about="Matrices, or items of other work, with a result."
)
FAILED = Definition(name="rmtscan_matrices_failed", kind="counter", about="Items that have no result, and a reason.")
BYTES_READ = Definition(name="rmtscan_bytes_read", kind="counter", about="Bytes of weights read by the workers.")
STAGE_SECONDS = Definition(
    name="rmtscan_stage_seconds",
    kind="counter",
    about="Seconds spent by all workers, and by the driver in the stage write.",
    labels=("kind", "stage"),
)
QUEUE = Definition(
    name="rmtscan_queue_length", kind="gauge", about="Items without a result yet, including those in work."
)
WORKERS = Definition(name="rmtscan_workers", kind="gauge", about="Workers that are ready.")
WANTED = Definition(name="rmtscan_workers_wanted", kind="gauge", about="Workers that the run asked for.")

#: Every metric. Labels have few values: `kind` is that of the work (scan, compare, ablate), never a name from a checkpoint.
DEFINITIONS = (DONE, FAILED, BYTES_READ, STAGE_SECONDS, QUEUE, WORKERS, WANTED)

_MAKE: dict[str, Callable[..., Any]] = {"counter": ray_metrics.Counter, "gauge": ray_metrics.Gauge}
_made: dict[str, Any] = {}  # Ray registers a metric once for each process


class Metrics:
    """Counts what one run does. On a local Ray of this process, which exports nothing, it does nothing."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def task(self, *, items: int, failed: int, bytes_read: int, stages: Mapping[str, float]) -> None:
        """Count a finished task; `items` includes the `failed` ones."""
        self._count(DONE, items - failed)
        self._count(FAILED, failed)
        self._count(BYTES_READ, bytes_read)
        for stage, seconds in stages.items():
            self._count(STAGE_SECONDS, seconds, stage=stage)

    def queue(self, items: int) -> None:
        """Note the number of items without a result."""
        self._set(QUEUE, items)

    def workers(self, alive: int, wanted: int) -> None:
        """Note the number of workers that are ready, and of those that the run asked for."""
        self._set(WORKERS, alive)
        self._set(WANTED, wanted)

    def ended(self) -> None:
        """Report that nothing is waiting and no worker runs: a gauge keeps its last value otherwise."""
        for gauge in (QUEUE, WORKERS, WANTED):
            self._set(gauge, 0)

    def _count(self, definition: Definition, value: float, **labels: str) -> None:
        if value > 0:
            self._record(definition, lambda metric, tags: metric.inc(value, tags=tags), labels)

    def _set(self, definition: Definition, value: float) -> None:
        self._record(definition, lambda metric, tags: metric.set(value, tags=tags), {})

    def _record(
        self, definition: Definition, write: Callable[[Any, dict[str, str]], None], labels: dict[str, str]
    ) -> None:
        if not _exported():
            return
        # A metric that cannot be recorded must not end a run of many hours.
        with contextlib.suppress(Exception):
            if definition.name not in _made:
                made = _MAKE[definition.kind](definition.name, definition.about, tag_keys=definition.labels)
                _made[definition.name] = made
            write(_made[definition.name], {"kind": self._kind, **labels})


def _exported() -> bool:
    """Whether this process belongs to a Ray that may export metrics; a driver on Ray's client has no process there."""
    return ray.is_initialized() and not is_private() and not ray.util.client.ray.is_connected()  # type: ignore[no-untyped-call]
