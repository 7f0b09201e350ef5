"""What the experiments that run on Ray have in common: the identity of a run, the model that an actor keeps, rows as bytes."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from threadpoolctl import ThreadpoolController

from scanner.engine.pool import granted_device
from scanner.errors import ScannerError
from scanner.experiments.models import Head, ModelPlace, Precision, load_model
from scanner.store.tables import pack, unpack
from scanner.store.tables import rows as rows_table

if TYPE_CHECKING:
    from scanner.engine import ScanObserver

__all__ = ["Errors", "Failure", "Resident", "one_line", "pack", "rows_table", "run_hash", "unpack"]

#: Raised whenever the same call would give different numbers; part of every run's identity.
EXPERIMENTS_VERSION = 3


def run_hash(kind: str, identity: str, parameters: Mapping[str, object]) -> str:
    """16 hexadecimal digits that name a run of this kind on this content with these parameters, on every machine."""
    text = json.dumps(
        {"kind": kind, "content": identity, "version": EXPERIMENTS_VERSION, "parameters": dict(parameters)},
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a task gave no result. With `hopeless` the others would fail for the same reason: the run ends."""

    message: str
    hopeless: bool = False


def one_line(error: Exception) -> str:
    """What an error says: the words of a ScannerError, of any other its type and first line."""
    if isinstance(error, ScannerError):
        return str(error)
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass(kw_only=True)
class Errors:
    """What went wrong in a run, told to its observer as it happens."""

    observer: ScanObserver
    messages: dict[str, str] = field(default_factory=dict)
    """Name of the task to what happened to it."""

    def add(self, name: str, failure: Failure) -> None:
        """Keep a failure.

        Raises:
            ScannerError: it is one that ends the run.
        """
        if failure.hopeless:
            raise ScannerError(failure.message)
        self.messages[name] = failure.message


#: Parameters of glibc's mallopt, and the largest threshold it takes for blocks that go back to the system when they are freed.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD = -1, -3, 32 << 20


def keep_freed_memory() -> None:
    """Let the allocator keep what is freed, and take large tensors in huge pages: each pass needs the same memory again.

    On a CPU a tenth of an evaluation went into the page faults of its logits (`benchmarks/bench_evaluation.py`). Where there is no
    glibc, nothing is changed.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks once, at its first large tensor
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


class Resident:
    """Base of the actors: one model that stays where it is, one computation at a time, one thread of BLAS."""

    def __init__(self) -> None:
        keep_freed_memory()
        self._device = granted_device()
        self._computing = threading.Lock()
        self._thread_pools = ThreadpoolController()
        self._model: tuple[object, Any] | None = None

    def ready(self) -> str:
        """The device, once the actor is there."""
        return self._device

    @contextmanager
    def computing(self) -> Iterator[float]:
        """Waits for its turn and limits threads; yields the time at which the turn began."""
        with self._computing, self._thread_pools.limit(limits=1):
            yield time.perf_counter()

    def model(self, place: ModelPlace, head: Head, dtype: Precision, config: Any = None) -> Any:
        """The model, loaded when it is first asked for; `config` as in `load_model`.

        Raises:
            ScannerError: as `load_model`.
        """
        wanted = (place, head, dtype)
        if self._model is None or self._model[0] != wanted:
            self._model = None  # two do not fit
            self._model = (wanted, load_model(place, head=head, device=self._device, dtype=dtype, config=config))
        return self._model[1]
