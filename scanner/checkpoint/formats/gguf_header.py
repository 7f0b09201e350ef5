"""The header of a GGUF file: metadata and tensors, checked against the file before anything is allocated.

Format, all of it little-endian: `GGUF`, version, number of tensors, number of metadata keys; the keys with their types
and values; name, dimensions, type and offset of every tensor; padding up to `general.alignment`; the data, from where
the offsets count. Source: the GGUF specification, docs/gguf.md of the ggml project (versions 2 and 3).
"""

import itertools
import math
import struct
from dataclasses import dataclass
from typing import Any, NoReturn

from scanner.checkpoint.model import MAX_NAME_BYTES, MAX_TENSORS, TensorEntry
from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import Files
from scanner.errors import CheckpointError

MAX_HEADER_BYTES = 256 * 2**20
MAX_KEYS = 10_000
MAX_ELEMENTS = 4_000_000
"""Limit for texts and arrays inside arrays, which must be skipped one by one: five times the largest vocabulary with its
merges."""

# Longer values are vocabularies, chat templates or attacks; none of them describes the model.
MAX_KEPT_TEXT = 4096
MAX_KEPT_NUMBERS = 1024

_MAX_DIMENSIONS = 4
_MAX_NESTING = 4
_MAX_ENTRIES = 2**56
_DEFAULT_ALIGNMENT = 32

_SMALLEST_BLOCK, _LARGEST_BLOCK = 4 * 2**10, 2**18

_SCALARS = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<?"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]

# The smallest possible size of a key with its value, and of a tensor with its name.
_SMALLEST_KEY = 8 + 1 + 4 + 1
_SMALLEST_TENSOR = 8 + 1 + 4 + 4 + 8


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """Metadata by key: numbers, short texts and short lists of numbers; of other arrays only the length, in `lengths`."""

    metadata: dict[str, Any]
    lengths: dict[str, int]
    tensors: tuple[TensorEntry, ...]


def read_gguf_header(files: Files, name: str) -> GgufHeader:
    """Read the header of a GGUF file, in blocks, without the data behind it.

    A `TensorEntry` has the name of its ggml type as dtype (`Q4_K`, `F16`) and its dimensions in row-major order, that
    is, in the reverse of the file's order. Entries come in the order of their bytes.

    Raises:
        CheckpointError: the file is not GGUF of a known version, is incomplete, or its header contradicts itself or
            the file.
    """
    reader = _Reader(files, name)
    tensor_count, key_count = _counts(reader)
    metadata, lengths = _metadata(reader, key_count)
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 2**30 or alignment & (alignment - 1):
        reader.wrong(f"its alignment {printable(str(alignment))} is not a power of two")
    described = _described_tensors(reader, tensor_count)
    data_start = -(-reader.at // alignment) * alignment
    entries = [_entry(reader, *description, data_start, alignment) for description in described]
    entries.sort(key=lambda entry: (entry.start, entry.name))
    for before, entry in itertools.pairwise(entries):
        if entry.start < before.start + before.size:
            reader.wrong(f"tensors '{printable(before.name)}' and '{printable(entry.name)}' overlap")
    return GgufHeader(metadata=metadata, lengths=lengths, tensors=tuple(entries))


class _Reader:
    """Reads values of the header in order; `at` is the position in bytes from the start of the file."""

    def __init__(self, files: Files, name: str) -> None:
        self._files, self._name = files, name
        self.size = files.size(name)
        self.at = 0
        self.elements = 0
        self._block, self._block_start = b"", 0

    def wrong(self, what: str, to_do: str = "download it again") -> NoReturn:
        raise CheckpointError(f"{printable(self._name)} is not a sound GGUF file: {what}; {to_do}")

    @property
    def left(self) -> int:
        return self.size - self.at

    @property
    def file(self) -> str:
        return self._name

    def take(self, count: int) -> bytes:
        begin = self._buffered(count)
        self.at += count
        return self._block[begin : begin + count]

    def number(self, form: struct.Struct) -> Any:
        begin = self._buffered(form.size)
        self.at += form.size
        return form.unpack_from(self._block, begin)[0]

    def skip(self, count: int) -> None:
        self._check(count)
        self.at += count

    def skip_strings(self, count: int) -> None:
        while count:
            begin = at = self._buffered(8, promised=8 * count)
            # A separate loop for speed: vocabularies have hundreds of thousands of strings.
            block, last, length = self._block, len(self._block) - 8, _U64.unpack_from
            while count and at <= last:
                at += 8 + length(block, at)[0]
                count -= 1
            self.skip(at - begin)

    def name(self, of: str) -> str:
        length = self.number(_U64)
        if not 0 < length <= MAX_NAME_BYTES:
            self.wrong(f"the name of a {of} has {length} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{printable(self._name)} is not a sound GGUF file: the name of a {of} is not UTF-8; download it again"
            ) from error

    def _check(self, count: int) -> None:
        if count > self.left:
            self.wrong(f"its header continues after the end of the file, at byte {self.size}")
        if self.at + count > MAX_HEADER_BYTES:
            self.wrong(f"its header is longer than {MAX_HEADER_BYTES} bytes")

    def expect(self, promised: int) -> None:
        """Read as many bytes into the block as the header must still have, within a limit."""
        if promised:
            self._buffered(min(promised, self.left, _SMALLEST_BLOCK), promised=promised)

    def _buffered(self, count: int, *, promised: int = 0) -> int:
        """Make sure that the block holds the next `count` bytes; return where in it they begin.

        The block is as long as what is `promised` to follow, or grows with the header: few reads of a long one, little
        more than it of any.
        """
        self._check(count)
        begin = self.at - self._block_start
        if begin + count > len(self._block):
            wanted = max(count, _SMALLEST_BLOCK, min(max(self.at // 32, promised), _LARGEST_BLOCK))
            self._block = self._files.read(self._name, self.at, min(wanted, self.left))
            self._block_start, begin = self.at, 0
            if len(self._block) < count:
                self.wrong("it became shorter while it was read")
        return begin


def _counts(reader: _Reader) -> tuple[int, int]:
    if reader.size < 24 or reader.take(4) != b"GGUF":
        reader.wrong("it does not begin with the letters GGUF and a version")
    version = reader.number(_U32)
    if version not in (2, 3):
        # In a big-endian file the zeros of the version are at the other end.
        found = "it is big-endian" if version and version & 0xFFFF == 0 else f"it has version {version}"
        reader.wrong(
            f"{found}, but only versions 2 and 3 in little-endian order are supported", "convert the model again"
        )
    tensors, keys = reader.number(_U64), reader.number(_U64)
    if keys > min(MAX_KEYS, reader.left // _SMALLEST_KEY):
        reader.wrong(f"it promises {keys} metadata keys")
    if tensors > min(MAX_TENSORS, reader.left // _SMALLEST_TENSOR):
        reader.wrong(f"it promises {tensors} tensors")
    return tensors, keys


def _metadata(reader: _Reader, count: int) -> tuple[dict[str, Any], dict[str, int]]:
    metadata: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    seen: set[str] = set()
    for _ in range(count):
        key = reader.name("metadata key")
        if key in seen:
            reader.wrong(f"metadata key '{printable(key)}' occurs twice")
        seen.add(key)
        kind = reader.number(_U32)
        if kind in _SCALARS:
            metadata[key] = reader.number(_SCALARS[kind])
        elif kind == _STRING:
            length = reader.number(_U64)
            if length > MAX_KEPT_TEXT:
                reader.skip(length)
            else:
                metadata[key] = reader.take(length).decode("utf-8", errors="replace")
        elif kind == _ARRAY:
            element, length = _array_head(reader)
            if element in _SCALARS and length <= MAX_KEPT_NUMBERS:
                metadata[key] = [reader.number(_SCALARS[element]) for _ in range(length)]
            else:
                lengths[key] = length
                _skip_array(reader, element, length, nesting=1)
        else:
            reader.wrong(f"metadata key '{printable(key)}' has the unknown type {kind}")
    return metadata, lengths


def _array_head(reader: _Reader) -> tuple[int, int]:
    element, length = reader.number(_U32), reader.number(_U64)
    smallest = {_STRING: 8, _ARRAY: 12}
    if element not in _SCALARS and element not in smallest:
        reader.wrong(f"it holds an array of the unknown type {element}")
    width = _SCALARS[element].size if element in _SCALARS else smallest[element]
    if length * width > reader.left:
        reader.wrong(f"it promises an array of {length} elements")
    if element in smallest:
        reader.elements += length
        if reader.elements > MAX_ELEMENTS:
            reader.wrong(f"its arrays hold more than {MAX_ELEMENTS} texts, which no vocabulary does")
    return element, length


def _skip_array(reader: _Reader, element: int, length: int, *, nesting: int) -> None:
    if element in _SCALARS:
        reader.skip(length * _SCALARS[element].size)
    elif element == _STRING:
        reader.skip_strings(length)
    else:
        if nesting == _MAX_NESTING:
            reader.wrong(f"its arrays are nested more than {_MAX_NESTING} deep")
        for _ in range(length):
            _skip_array(reader, *_array_head(reader), nesting=nesting + 1)


def _described_tensors(reader: _Reader, count: int) -> list[tuple[str, tuple[int, ...], int, int]]:
    """Name, shape in row-major order, ggml type and offset of every tensor."""
    described = []
    seen: set[str] = set()
    for number in range(count):
        if number % 64 == 0:
            reader.expect((count - number) * _SMALLEST_TENSOR)
        name = reader.name("tensor")
        if name in seen:
            reader.wrong(f"tensor '{printable(name)}' occurs twice")
        seen.add(name)
        dimensions = reader.number(_U32)
        if dimensions > _MAX_DIMENSIONS:
            reader.wrong(f"tensor '{printable(name)}' has {dimensions} dimensions")
        shape = tuple(reader.number(_U64) for _ in range(dimensions))[::-1]
        described.append((name, shape, reader.number(_U32), reader.number(_U64)))
    return described


def _entry(
    reader: _Reader, name: str, shape: tuple[int, ...], type_number: int, offset: int, data_start: int, alignment: int
) -> TensorEntry:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    shown = printable(name)
    try:
        ggml_type = GGMLQuantizationType(type_number)
        block_entries, block_bytes = GGML_QUANT_SIZES[ggml_type]
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"{printable(reader.file)}: tensor '{shown}' has the ggml type {type_number}, which the installed gguf "
            "package does not know: update it (pip install --upgrade gguf), or use another quantization of the model"
        ) from error
    if 0 in shape or math.prod(shape) > _MAX_ENTRIES:
        reader.wrong(f"tensor '{shown}' has the dimensions {'x'.join(map(str, shape))}")
    if (shape[-1] if shape else 1) % block_entries:
        reader.wrong(f"tensor '{shown}' has rows that are no whole number of {ggml_type.name} blocks")
    size = math.prod(shape) // block_entries * block_bytes
    if offset % alignment:
        reader.wrong(f"tensor '{shown}' begins at byte {offset}, which is not a multiple of {alignment}")
    if data_start + offset + size > reader.size:
        reader.wrong(f"the file has {reader.size} bytes and tensor '{shown}' ends at byte {data_start + offset + size}")
    return TensorEntry(
        name=name, dtype=ggml_type.name, shape=shape, file=reader.file, start=data_start + offset, size=size
    )
