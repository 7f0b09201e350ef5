"""The safetensors format. Headers are checked against the file before anything is allocated.

Format: 8 bytes of little-endian length, then as many bytes of JSON (tensor name -> dtype, shape, data_offsets), then
the data. The rules are those of the reference implementation: offsets count from the end of the header, and the
tensors cover the data without a gap or an overlap.
"""

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from scanner.checkpoint.formats.format import Format, Headers, WeightFiles, check_name
from scanner.checkpoint.formats.parts import without_variants
from scanner.checkpoint.model import MAX_DIMENSIONS, MAX_TENSORS, TensorEntry
from scanner.checkpoint.names import printable
from scanner.checkpoint.quantization.adapter_scales import DIFFUSERS_METADATA
from scanner.checkpoint.quantization.low_rank import holds_factors
from scanner.checkpoint.quantization.stored import DTYPE_BITS
from scanner.checkpoint.sources.files import Files
from scanner.checkpoint.sources.json_object import check_json_size
from scanner.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
_MAX_ADAPTER_METADATA = 2**20
_STEP = re.compile(r"\d+_(?P<last>adapters\.safetensors)")

# More entries than any file can hold. It also limits the size of products over untrusted shapes.
_MAX_ENTRIES = 2**56

_GIT_LFS = b"version https://git-lfs"


class Safetensors(Format):
    """The format of the safetensors package, in which the Hub has most models."""

    name = "safetensors"
    title = ".safetensors"
    suffixes = (".safetensors",)
    single_file = "model.safetensors"

    def find(self, files: Files) -> WeightFiles | None:
        """Return model.safetensors or the files of its index; without both, every .safetensors file of the folder.

        Copies in another precision (`x.fp16.safetensors` beside `x.safetensors`) are left out.
        """
        found = super().find(files)
        if found is not None:
            return found
        names = without_variants(tuple(name for name in files.names() if self.recognizes(name)))
        # mlx_lm keeps `0000100_adapters.safetensors`, the same adapter at an earlier step, beside `adapters.safetensors`.
        names = tuple(name for name in names if (step := _STEP.fullmatch(name)) is None or step["last"] not in names)
        return WeightFiles(names=names) if names else None

    def find_other(self, files: Files) -> None:
        """Return None: `find` leaves no file."""

    def read_headers(self, files: Files, names: Sequence[str]) -> Headers:
        """Read the headers of all weights files; for an adapter of diffusers also the description in its metadata."""
        found = super().read_headers(files, names)
        if not holds_factors(found.tensors):
            return found
        return Headers(tensors=found.tensors, config=_adapter_metadata(files, names[0]))

    def read_file(self, files: Files, name: str) -> list[TensorEntry]:
        """Read the header of a file; see `read_header`."""
        return read_header(files, name)


def read_header(files: Files, name: str) -> list[TensorEntry]:
    """Return the tensors of a safetensors file, in the order of their bytes.

    Raises:
        CheckpointError: the file is not safetensors, is incomplete, or its header contradicts itself or the file.
    """
    shown = printable(name)
    file_size = files.size(name)
    if file_size < 8:
        raise CheckpointError(f"{shown} has {file_size} bytes, too few for a safetensors file: download it again")
    length = int.from_bytes(files.read(name, 0, 8), "little")
    if length > min(MAX_HEADER_BYTES, file_size - 8):
        if files.read(name, 0, len(_GIT_LFS)) == _GIT_LFS:
            raise CheckpointError(
                f"{shown} is a Git LFS pointer instead of the weights: run `git lfs pull` in its folder"
            )
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{shown} is not a safetensors file: it begins with a header length of {length} bytes"
            )
        raise CheckpointError(
            f"{shown} has {file_size} bytes and its header alone promises {length + 8}: download it again"
        )
    header = _parse_json(files.read(name, 8, length), shown)
    return _checked_entries(header, name, data_start=8 + length, file_size=file_size)


def _adapter_metadata(files: Files, name: str) -> dict[str, Any]:
    """Return what the header of a file, which was checked before, says about the adapter in it."""
    length = int.from_bytes(files.read(name, 0, 8), "little")
    metadata = _parse_json(files.read(name, 8, length), printable(name)).get("__metadata__") or {}
    text = metadata.get(DIFFUSERS_METADATA)
    if text is None:
        return {}
    try:
        described = json.loads(text) if len(text) < _MAX_ADAPTER_METADATA else None
    except (ValueError, RecursionError):
        described = None
    if not isinstance(described, dict):
        raise CheckpointError(
            f"the {DIFFUSERS_METADATA} of {printable(name)} is not a JSON object: save the adapter again"
        )
    return {DIFFUSERS_METADATA: described}


def _checked_entries(header: dict[str, Any], name: str, *, data_start: int, file_size: int) -> list[TensorEntry]:
    shown = printable(name)
    _check_metadata(header.pop("__metadata__", None), shown)
    entries = [_entry(tensor, info, name, data_start) for tensor, info in header.items()]
    entries.sort(key=lambda entry: (entry.start, entry.size, entry.name))
    end = data_start
    for before, entry in zip([None, *entries], entries, strict=False):
        if entry.start < end and before is not None:
            raise CheckpointError(
                f"the header of {shown} lets tensors '{printable(before.name)}' and '{printable(entry.name)}' overlap: "
                "the file is damaged, download it again"
            )
        if entry.start > end:
            raise CheckpointError(
                f"the header of {shown} leaves {entry.start - end} bytes before tensor '{printable(entry.name)}' "
                "to no tensor: the file is damaged, download it again"
            )
        end = entry.start + entry.size
    if end != file_size:
        raise CheckpointError(f"{shown} has {file_size} bytes and its header promises {end}: download it again")
    return entries


def _entry(tensor: str, info: Any, file: str, data_start: int) -> TensorEntry:
    def wrong(what: str) -> NoReturn:
        raise CheckpointError(f"the header of {printable(file)} is damaged: tensor '{printable(tensor)}' {what}")

    check_name(tensor, file)
    if not _is_text(tensor):
        wrong("has a name that is not Unicode text")
    if not isinstance(info, dict):
        wrong("is not described by a JSON object")
    dtype, shape, offsets = info.get("dtype"), info.get("shape"), info.get("data_offsets")
    if not isinstance(dtype, str):
        wrong("has a dtype that is not a string")
    if dtype not in DTYPE_BITS:
        wrong(f"has the unknown dtype '{printable(dtype)}'")
    if not isinstance(shape, list) or not all(type(extent) is int for extent in shape):
        wrong("has a shape that is not a list of non-negative integers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        wrong("has data_offsets that are not two non-negative integers")
    begin, end = offsets
    entries, bound = 1, 1
    for extent in shape:
        entries *= extent
        bound *= max(extent, 1)
        if bound > _MAX_ENTRIES:
            wrong("has a shape larger than any file")
    if len(shape) > MAX_DIMENSIONS:
        wrong(f"has {len(shape)} dimensions, more than any tensor")
    bits = entries * DTYPE_BITS[dtype]
    if end - begin != bits // 8 or bits % 8:
        wrong(f"has {end - begin} bytes where dtype {dtype} and shape {_shape_text(shape)} need {-(-bits // 8)}")
    return TensorEntry(
        name=tensor, dtype=dtype, shape=tuple(shape), file=file, start=data_start + begin, size=end - begin
    )


def _check_metadata(metadata: Any, shown: str) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) and _is_text(key) and _is_text(value) for key, value in metadata.items()
    ):
        raise CheckpointError(f"the header of {shown} is damaged: its __metadata__ is not an object of strings")


def _parse_json(data: bytes, shown: str) -> dict[str, Any]:
    if not data.startswith(b"{"):
        raise CheckpointError(f"{shown} is not a safetensors file: its header does not begin with a JSON object")
    # A tensor has about ten values: its name, dtype, shape and offsets. Too many tensors are counted below.
    check_json_size(data, f"the header of {shown}", max_values=40 * MAX_TENSORS, max_lists=5 * MAX_TENSORS)
    objects = itertools.count(1)

    def one_more(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Each tensor is an object, as are the metadata and the header itself.
        if next(objects) > MAX_TENSORS + 2:
            raise CheckpointError(
                f"the header of {shown} describes more than {MAX_TENSORS} tensors: no model has so many"
            )
        return _unique(pairs)

    try:
        header = json.loads(
            data.decode("utf-8"), object_pairs_hook=one_more, parse_int=_natural, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the header of {shown} is not valid JSON ({error}): download it again") from error
    return dict(header)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"'{printable(twice)}' occurs twice")
    return unique


def _natural(digits: str) -> int:
    # No number of the format is negative or has more digits than 2**64.
    if digits.startswith("-") or len(digits) > 20:
        raise ValueError(f"{digits[:24]} is not a size or an offset")
    return int(digits)


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _is_text(text: str) -> bool:
    # JSON can contain half of a surrogate pair, which cannot be encoded.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shape_text(shape: list[int]) -> str:
    return "x".join(str(extent) for extent in shape[:8]) + ("x..." if len(shape) > 8 else "") or "()"
