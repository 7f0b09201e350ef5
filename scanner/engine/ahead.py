"""Threads of the driver that work ahead of the workers: they open checkpoints, and hash local files beside a scan.

The threads touch neither the store nor the observer: the driver's own thread collects what they have finished. They are daemons,
so that a read that hangs does not keep an interrupted command from ending.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from scanner.checkpoint import Checkpoint, Inventory, Selection, identified, list_matrices, open_checkpoint
from scanner.checkpoint.opening import HASHED_AT_ONCE
from scanner.checkpoint.sources import hashes
from scanner.errors import CheckpointError, ScannerError

#: Checkpoints that are being opened, or are open and not taken yet: enough to hide the latency of a network.
OPENED_AHEAD = 16
#: Local ones that are opened at once. This is work for the interpreter, which runs one thread at a time: more would only delay
#: the first.
LOCAL_AT_ONCE = 2
#: Files that are hashed at once.
HASHED_BESIDE = max(1, min(4, (os.cpu_count() or 1) // 2))


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a reference leads to: a checkpoint and its matrices, or the reason why there are none."""

    reference: str
    checkpoint: Checkpoint | None = None
    inventory: Inventory | None = None
    error: CheckpointError | None = None


def open_reference(reference: str, selection: Selection, *, download: bool, name: str | None = None) -> Opened:
    """Open a checkpoint and list its matrices; an error that concerns only this reference is returned.

    With `name`, the model has this name instead of its own, which is not part of its identity.

    Large local files are not hashed: the checkpoint then has a provisional identity (see `scanner.checkpoint.opening`).
    """
    checkpoint: Checkpoint | None = None
    try:
        checkpoint = open_checkpoint(reference, download=download, hash_at_most=HASHED_AT_ONCE)
        if name is not None:
            checkpoint = replace(checkpoint, model=name)
        inventory = list_matrices(checkpoint, selection, compare_bytes=False)
        if not inventory.matrices:
            raise CheckpointError(nothing_to_scan(checkpoint, inventory))
    except CheckpointError as error:
        return Opened(reference=reference, checkpoint=checkpoint, error=error)
    except ScannerError:  # it concerns every reference
        raise
    except Exception as error:  # a file that this program does not expect is no reason to stop the others
        # Its last line: a message from outside may have many.
        text = (str(error).strip() or "no message").splitlines()[-1]
        unexpected = CheckpointError(f"{reference}: opening it failed unexpectedly ({type(error).__name__}: {text})")
        unexpected.__cause__ = error
        return Opened(reference=reference, checkpoint=checkpoint, error=unexpected)
    return Opened(reference=reference, checkpoint=checkpoint, inventory=inventory)


def nothing_to_scan(checkpoint: Checkpoint, inventory: Inventory) -> str:
    """Say in one line why a checkpoint has no matrix to analyze."""
    reasons: dict[str, int] = {}
    for tensor in inventory.skipped:
        reasons[tensor.reason] = reasons.get(tensor.reason, 0) + 1
    told = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))
    return f"{checkpoint.model}: no matrix to analyze among its {len(inventory.skipped)} tensors ({told})"


@dataclass(frozen=True, kw_only=True)
class _Begun:
    reference: str


class _End:
    """There are no more references."""


class Opener:
    """Opens references concurrently, in their order, at most `OPENED_AHEAD` before they are taken."""

    def __init__(self, references: Iterator[str], open_one: Callable[[str], Opened]) -> None:
        """Begin when `take` is called first; `references` is then consumed as needed, by one thread at a time."""
        self._references, self._open = references, open_one
        self._events: queue.SimpleQueue[_Begun | Opened | _End | BaseException] = queue.SimpleQueue()
        self._room = threading.Semaphore(OPENED_AHEAD)
        self._local = threading.Semaphore(LOCAL_AT_ONCE)
        self._next = threading.Lock()
        self._stopped = False
        self._started = False
        self._ended = False
        self._no_more = False  # for the threads
        self._pending = 0  # begun and not taken

    @property
    def exhausted(self) -> bool:
        """Whether every reference has been taken."""
        return self._ended and not self._pending

    def take(self, timeout: float | None, begun: Callable[[str], None]) -> Opened | None:
        """Return a checkpoint that has been opened; None if there is none within the time.

        Args:
            timeout: seconds to wait; None: until there is one, or there are no more.
            begun: called with every reference whose opening has begun.

        Raises:
            Exception: what the iterator of the references raised.
        """
        self._start()
        while not self.exhausted:
            try:
                event = self._events.get(timeout=timeout) if timeout != 0 else self._events.get_nowait()
            except queue.Empty:
                return None
            if isinstance(event, _Begun):
                self._pending += 1
                begun(event.reference)
            elif isinstance(event, Opened):
                self._pending -= 1
                self._room.release()
                return event
            elif isinstance(event, _End):
                self._ended = True
            else:
                self.close()
                raise event
        return None

    def close(self) -> None:
        """Let the threads end."""
        self._stopped = True
        self._room.release(OPENED_AHEAD)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            for number in range(OPENED_AHEAD):
                threading.Thread(target=self._run, name=f"rmtscan-open-{number}", daemon=True).start()

    def _run(self) -> None:
        try:
            while True:
                self._room.acquire()
                with self._next:
                    if self._stopped or self._no_more:
                        return
                    try:
                        reference = next(self._references)
                    except StopIteration:
                        self._no_more = True
                        self._events.put(_End())
                        return
                    self._events.put(_Begun(reference=reference))
                if _is_local(reference):
                    with self._local:
                        opened = self._open(reference)
                else:
                    opened = self._open(reference)
                self._events.put(opened)
        except BaseException as error:  # a fault of the iterator or of this program: the driver raises it
            self._events.put(error)


def _is_local(reference: str) -> bool:
    try:
        return Path(reference).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


class _StoppedError(Exception):
    """The command ends."""


class Hasher:
    """Hashes the files of checkpoints in threads, in the order in which they are submitted."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[str, Checkpoint] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[str, Checkpoint | CheckpointError | BaseException]] = queue.SimpleQueue()
        self._threads = 0
        self._stopped = False
        self._unwanted: set[str] = set()
        self.pending: set[str] = set()
        """Keys of the checkpoints that are not hashed yet."""

    def submit(self, key: str, checkpoint: Checkpoint) -> None:
        """Hash a checkpoint; `take` returns it under this key."""
        self.pending.add(key)
        self._unwanted.discard(key)
        self._waiting.put((key, checkpoint))
        if self._threads < HASHED_BESIDE:
            self._threads += 1
            threading.Thread(target=self._run, name=f"rmtscan-hash-{self._threads}", daemon=True).start()

    def drop(self, key: str) -> None:
        """Do not hash this checkpoint any further."""
        self._unwanted.add(key)
        self.pending.discard(key)

    def take(self, timeout: float) -> tuple[str, Checkpoint | CheckpointError] | None:
        """Return a checkpoint with its identity, or why it has none; None if there is none within `timeout` seconds."""
        while self.pending:
            try:
                key, outcome = self._done.get(timeout=timeout) if timeout else self._done.get_nowait()
            except queue.Empty:
                return None
            if key not in self.pending:
                continue
            if isinstance(outcome, Checkpoint | CheckpointError):
                self.pending.discard(key)
                return key, outcome
            raise outcome
        return None

    def close(self) -> None:
        """Let the threads end, and write what they have found for later runs."""
        self._stopped = True
        for _ in range(self._threads):
            self._waiting.put(None)
        if self._threads:
            hashes.flush()

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            key, checkpoint = item
            try:
                outcome: Checkpoint | BaseException = identified(checkpoint, check=self._check(key))
            except _StoppedError:
                continue
            except BaseException as error:  # the driver raises what is no error of the checkpoint
                outcome = error
            self._done.put((key, outcome))

    def _check(self, key: str) -> Callable[[], None]:
        def check() -> None:
            if self._stopped or key in self._unwanted:
                raise _StoppedError

        return check
