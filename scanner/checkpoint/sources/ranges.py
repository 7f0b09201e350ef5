"""Byte ranges of files. Neighboring ranges are read together, straight into one buffer per range."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_GAP_BYTES = 256 * 2**10
"""Largest gap between two ranges that are read together: reading more costs more than another request."""

MAX_GAP_SHARE = 1 / 32
"""Largest share of gaps in a read. The rest of the allowed 5 % overhead is for the blocks in which headers are read."""


@dataclass(frozen=True, kw_only=True)
class ByteRange:
    """`size` bytes of the file `name`, from byte `start` on."""

    name: str
    start: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Read:
    """One contiguous part of a file that covers the ranges with the indices `wanted`, in file order."""

    name: str
    start: int
    size: int
    wanted: tuple[int, ...]


def plan_reads(ranges: Sequence[ByteRange]) -> list[Read]:
    """Combine ranges that are close together in a file into one read; overlapping ranges are read separately."""
    order = sorted(
        (index for index, wanted in enumerate(ranges) if wanted.size),
        key=lambda index: (ranges[index].name, ranges[index].start),
    )
    reads: list[Read] = []
    gaps = 0
    for index in order:
        wanted = ranges[index]
        last = reads[-1] if reads else None
        gap = wanted.start - (last.start + last.size) if last is not None and last.name == wanted.name else -1
        size = last.size + gap + wanted.size if last is not None else 0
        if last is not None and 0 <= gap <= MAX_GAP_BYTES and gaps + gap <= MAX_GAP_SHARE * (size - gaps - gap):
            gaps += gap
            reads[-1] = Read(name=last.name, start=last.start, size=size, wanted=(*last.wanted, index))
        else:
            gaps = 0
            reads.append(Read(name=wanted.name, start=wanted.start, size=wanted.size, wanted=(index,)))
    return reads


class Sink:
    """Buffers that are filled one after another by chunks of any size.

    `size` is the total number of bytes, `done` how many have arrived.
    """

    def __init__(self, buffers: Iterable[memoryview]) -> None:
        self._buffers = [buffer for buffer in buffers if len(buffer)]
        self._at = 0
        self._filled = 0
        self.size = sum(len(buffer) for buffer in self._buffers)
        self.done = 0

    @property
    def missing(self) -> int:
        """Number of bytes that have not arrived."""
        return self.size - self.done

    def write(self, chunk: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            ValueError: there are more bytes than are missing.
        """
        if len(chunk) > self.missing:
            raise ValueError(f"{len(chunk)} bytes where {self.missing} are missing")
        rest = memoryview(chunk)
        while len(rest):
            buffer = self._buffers[self._at]
            count = min(len(rest), len(buffer) - self._filled)
            buffer[self._filled : self._filled + count] = rest[:count]
            rest = rest[count:]
            self._filled += count
            self.done += count
            if self._filled == len(buffer):
                self._at += 1
                self._filled = 0


def sink_of(read: Read, ranges: Sequence[ByteRange], contents: "Sequence[NDArray[np.uint8]]") -> Sink:
    """Return a sink for a read: the bytes of range i go into `contents[i]`, those in gaps are dropped."""
    buffers = []
    place = read.start
    for index in read.wanted:
        wanted = ranges[index]
        buffers += [memoryview(bytearray(wanted.start - place)), contents[index].data]
        place = wanted.start + wanted.size
    return Sink(buffers)
