"""The common part of remote sources: headers are read in growing blocks, tensors in as few requests as possible."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from scanner.checkpoint.names import is_plain_name, printable
from scanner.checkpoint.sources.ranges import ByteRange, Sink, plan_reads, sink_of
from scanner.checkpoint.sources.versions import FileVersion
from scanner.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CONNECTIONS = 8

# The first block of a header is small, because every shard needs one, even for a single tensor.
_FIRST_BLOCK_BYTES = 4 * 2**10
_LARGEST_BLOCK_BYTES = 2**20
# How much of the start of a file is cached: a header with a vocabulary takes some ten megabytes.
_KEPT_BYTES = 64 * 2**20


class RemoteFiles(ABC):
    """The part of `Files` that does not depend on how bytes are fetched. Thread-safe."""

    def __init__(self, source: str, *, named: str | None) -> None:
        self.source = source
        self.named = named
        self.place = printable(source)
        self.commit: str | None = None
        self._heads: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""

    @abstractmethod
    def _fill(self, name: str, start: int, sink: Sink) -> None:
        """Fill `sink` with the bytes of a file from `start` on; the file is large enough by its size."""

    def read(self, name: str, start: int, size: int) -> bytes:
        """Return `size` bytes from byte `start` on; fewer only at the end of the file.

        The start of a file is cached. Small reads of it fetch blocks that grow with what was read before, so that many of
        them cost few requests and about a tenth of extra bytes; larger reads fetch exactly what they ask for.
        """
        head = self._heads.get(name, b"")
        if start + size <= len(head):
            return head[start : start + size]
        file_size = self.size(name)
        end = min(start + size, file_size)
        if end <= start:
            return b""
        if start <= len(head) < end <= _KEPT_BYTES and size <= _LARGEST_BLOCK_BYTES:
            small = size < _FIRST_BLOCK_BYTES
            ahead = min(max(_FIRST_BLOCK_BYTES, len(head) // 4), _LARGEST_BLOCK_BYTES) if small else 0
            head += self._fetch(name, len(head), min(max(end, len(head) + ahead), file_size))
            with self._lock:
                self._heads[name] = max(self._heads.get(name, b""), head, key=len)
        known = head[start:end]
        return known if start + len(known) == end else known + self._fetch(name, start + len(known), end)

    def read_ranges(self, ranges: "Sequence[ByteRange]") -> "list[NDArray[np.uint8]]":
        """Return the bytes of every range, in their order, as writable uint8 arrays.

        Raises:
            CheckpointError: a file ends before its range does, or cannot be read.
        """
        import numpy as np

        for wanted in ranges:
            missing = wanted.start + wanted.size - self.size(wanted.name)
            if missing > 0:
                raise CheckpointError(
                    f"{printable(wanted.name)} of {self.place} ends {missing} bytes before the tensor that begins at byte "
                    f"{wanted.start}: the file is not the one whose header was read"
                )
        contents = [np.empty(wanted.size, dtype=np.uint8) for wanted in ranges]
        for read in plan_reads(ranges):
            self._fill(read.name, read.start, sink_of(read, ranges, contents))
        return contents

    def unhashed(self, names: Iterable[str]) -> int:
        """Return 0: the source reports what the identity is made of."""
        return 0

    def opened(self) -> None:
        """Drop the cached starts of files."""
        with self._lock:
            self._heads.clear()

    def versions(self, names: Sequence[str]) -> tuple[FileVersion, ...]:
        """Return nothing: a source whose files can change overrides this."""
        return ()

    def expect(self, names: Sequence[str]) -> None:
        """Fetch the first bytes of files, several files at a time."""
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for _ in pool.map(self._fetch_start, names):
                pass

    def _fetch_start(self, name: str) -> None:
        beginning = self.read(name, 0, 8)
        if name.endswith(".safetensors"):
            # Eight bytes with the length of the header precede it.
            self.read(name, 8, min(int.from_bytes(beginning, "little"), _LARGEST_BLOCK_BYTES))

    def _fetch(self, name: str, start: int, end: int) -> bytes:
        content = bytearray(end - start)
        self._fill(name, start, Sink([memoryview(content)]))
        return bytes(content)

    def _checked(self, name: str) -> str:
        if not is_plain_name(name):
            raise CheckpointError(f"'{printable(name)}' is not the name of a file inside {self.place}: not read")
        return name
