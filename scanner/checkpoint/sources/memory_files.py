"""Tensors in the memory of a process as a file source: what reads byte ranges of files reads them, too.

A source `in-memory:TOKEN` is known to the process that holds the tensors. If others may read, too, it is `in-memory:PORT:TOKEN`:
processes of this machine that know the name read over the loopback interface, and the token is the secret with which both sides
authenticate. Every read is a copy: nothing that is done with it changes the model.
"""

import secrets
import struct
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING, Any

from scanner.checkpoint.model import MEMORY
from scanner.checkpoint.sources.ranges import ByteRange
from scanner.checkpoint.sources.versions import FileVersion
from scanner.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE = "memory"
"""Name of the one file of such a source."""

_LOOPBACK = "127.0.0.1"
_QUESTION, _SIZE = struct.Struct("<qq"), struct.Struct("<q")


@dataclass(frozen=True, kw_only=True)
class Extent:
    """One tensor: where its bytes are in the source, and how they are copied.

    Attributes:
        start: offset of the first byte.
        size: number of bytes.
        read: returns the bytes from one offset in the tensor up to another, in row-major order, as a new uint8 array.
    """

    start: int
    size: int
    read: "Callable[[int, int], NDArray[np.uint8]]"


class _Held:
    """The tensors of one source, and the server of other processes, if there is one."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        self.extents = sorted((one for one in extents if one.size), key=lambda one: one.start)
        self.starts = [one.start for one in self.extents]
        self.size = max((one.start + one.size for one in self.extents), default=0)
        self.listener: Listener | None = None
        self.released = False

    def read(self, start: int, size: int) -> "NDArray[np.uint8]":
        """Return bytes of one tensor."""
        import numpy as np

        if not size:
            return np.empty(0, dtype=np.uint8)
        one = self.extents[max(bisect_right(self.starts, start) - 1, 0)] if self.extents else None
        if one is None or not one.start <= start or start + size > one.start + one.size:
            raise CheckpointError(f"no tensor in memory has the bytes from {start} to {start + size}")
        return one.read(start - one.start, start + size - one.start)


_held: dict[str, _Held] = {}


def hold(extents: Iterable[Extent], *, serve: bool = False) -> str:
    """Make tensors readable by the name of a source, until `release`.

    Args:
        extents: the tensors; they do not overlap.
        serve: let other processes of this machine read, too: those that know the name.

    Returns:
        The name of the source.
    """
    held, token = _Held(extents), secrets.token_hex(16)
    if not serve:
        source = f"{MEMORY}{token}"
    else:
        held.listener = Listener((_LOOPBACK, 0), authkey=token.encode())
        source = f"{MEMORY}{held.listener.address[1]}:{token}"
        threading.Thread(target=_serve, args=(held, held.listener), name="rmtscan-memory", daemon=True).start()
    _held[source] = held
    return source


def release(source: str) -> None:
    """Forget the tensors of a source, if there is one of this name."""
    held = _held.pop(source, None)
    if held is not None and held.listener is not None:
        held.released = True
        with suppress(OSError, EOFError, AuthenticationError), _connect(source):
            pass  # ends the wait for the next process


def is_memory(source: str) -> bool:
    """Tell whether a source is in memory."""
    return source.startswith(MEMORY)


def _connect(source: str) -> "Connection[Any, Any]":
    port, _, token = source.removeprefix(MEMORY).partition(":")
    if not token:
        raise ConnectionRefusedError
    return Client((_LOOPBACK, int(port)), authkey=token.encode())


class MemoryFiles:
    """The one file of a source in memory (`scanner.checkpoint.sources.files.Files`)."""

    named: str | None = None
    commit: str | None = None
    place = "the model in memory"

    def __init__(self, source: str) -> None:
        """Find the source.

        Raises:
            CheckpointError: it was released, or this process cannot reach it.
        """
        self.source = source
        self._local = _held.get(source)
        self._remote: Connection[Any, Any] | None = None
        if self._local is not None:
            return
        try:
            self._remote = _connect(source)
        except (OSError, ValueError, EOFError, AuthenticationError) as error:
            raise CheckpointError("the model is no longer in memory: analyze it again") from error

    def names(self) -> tuple[str, ...]:
        """Return the name of the file."""
        return (FILE,)

    def folders(self) -> tuple[str, ...]:
        """Return nothing: there are no folders."""
        return ()

    def folder(self, name: str) -> "MemoryFiles":
        """Raise CheckpointError: there are no folders."""
        raise CheckpointError(f"{self.place} has no folders")

    def neighbors(self) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        return name == FILE

    def size(self, name: str) -> int:
        """Return the number of bytes of all tensors."""
        if self._local is not None:
            return self._local.size
        return int(_SIZE.unpack(self._ask(b""))[0])

    def read(self, name: str, start: int, size: int) -> bytes:
        """Return bytes of one tensor."""
        [found] = self.read_ranges([ByteRange(name=name, start=start, size=size)])
        return found.tobytes()

    def read_ranges(self, ranges: Sequence[ByteRange]) -> "list[NDArray[np.uint8]]":
        """Return copies of the bytes of every range, each of which lies in one tensor."""
        import numpy as np

        if self._local is not None:
            return [self._local.read(one.start, one.size) for one in ranges]
        found = [self._ask(_QUESTION.pack(one.start, one.size)) for one in ranges]
        return [np.frombuffer(bytearray(content), dtype=np.uint8) for content in found]

    def expect(self, names: Sequence[str]) -> None:
        """Do nothing: memory needs no announcement."""

    def identity(self, names: Iterable[str], *, check: Callable[[], None] = lambda: None) -> str:
        """Raise CheckpointError: `scanner.checkpoint.memory` identifies what is in memory, together with its names."""
        raise CheckpointError(f"{self.place} has no files to hash")

    def unhashed(self, names: Iterable[str]) -> int:
        """Return 0: nothing is hashed later."""
        return 0

    def opened(self) -> None:
        """Do nothing: no headers are cached."""

    def versions(self, names: Sequence[str]) -> tuple[FileVersion, ...]:
        """Return nothing: memory has no versions."""
        return ()

    def keep_whole(self, *, branch: str | None) -> None:
        """Do nothing: everything is on this machine."""

    def _ask(self, question: bytes) -> bytes:
        assert self._remote is not None
        try:
            self._remote.send_bytes(question)
            answer = self._remote.recv_bytes()
        except (OSError, EOFError) as error:
            raise CheckpointError("the model is no longer in memory: analyze it again") from error
        if answer[:1] != b"+":
            raise CheckpointError(answer[1:].decode("utf-8", "replace"))
        return answer[1:]


def _serve(held: _Held, listener: Listener) -> None:
    """Answer processes until the source is released; each has a thread of its own."""
    while True:
        try:
            connection = listener.accept()
        except (OSError, EOFError, AuthenticationError):  # of one process that asked
            if held.released:
                break
            continue
        if held.released:
            connection.close()
            break
        threading.Thread(target=_answer, args=(held, connection), name="rmtscan-memory", daemon=True).start()
    listener.close()


def _answer(held: _Held, connection: "Connection[Any, Any]") -> None:
    """Answer one process: the size of all tensors to an empty question, else bytes of one of them."""
    with suppress(OSError, EOFError), connection:
        while True:
            question = connection.recv_bytes(_QUESTION.size)
            try:
                content = held.read(*_QUESTION.unpack(question)).tobytes() if question else _SIZE.pack(held.size)
            except Exception as error:  # the process that asked reports it
                connection.send_bytes(b"-" + (str(error) or type(error).__name__).encode())
            else:
                connection.send_bytes(b"+" + content)
