"""The PyTorch format (`.bin`, `.pt`, `.pth`): finds the bytes of each tensor without loading or running anything.

Since version 1.6 `torch.save` writes a zip archive whose members are stored as they are: `data.pkl`, a pickle that
describes the objects, and `data/0`, `data/1`, ..., the storages of its tensors. Older versions wrote five pickles
and then the storages, each preceded by the number of its entries. Source: torch/serialization.py.
"""

import math
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any, NoReturn, cast

from scanner.checkpoint.formats.format import Format, Headers, WeightFiles, check_name, check_tensor_count
from scanner.checkpoint.formats.torch_pickle import (
    MAX_PICKLE_BYTES,
    Pickle,
    PickleCodeError,
    PickledTensor,
    PickleError,
    read_pickle,
)
from scanner.checkpoint.model import MAX_NAME_BYTES, MAX_TENSORS, Skipped, TensorEntry
from scanner.checkpoint.names import printable
from scanner.checkpoint.sources.files import ByteRange, Files
from scanner.errors import CheckpointError

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "F8_E8M0": 1, "C64": 8, "C128": 16, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1,
    "BOOL": 1, "QI8": 1, "QU8": 1, "QI32": 4,
}  # fmt: skip

# The largest single read is the directory of an archive: about 70 bytes per tensor.
_MAX_READ_BYTES = 16 * 2**20
_MAX_LINE_BYTES = 2**10
_SMALLEST_BLOCK_BYTES, _LARGEST_BLOCK_BYTES = 4 * 2**10, 2**18
_LAST_BLOCK_BYTES = 2**10
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_HAS_DESCRIPTOR = 1 << 3
_ALIGNMENT = 64
_LONGEST_EXTRA = 32  # sizes of 8 bytes, and the head of the padding
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MAX_ENTRIES = 2**56

# Keys under which training scripts store the weights, beside optimizers and counters; the first that holds tensors counts.
_WEIGHTS_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params", "state")
_TRAINER_KEYS = re.compile(
    r"(?:optim|opt(?:_\w+)?\Z|sched|lr_sched|scaler|grad_scaler|rng|random|(?:\w+_)?rng_state|(?:\w+_)?loss\Z|criterion)",
    re.IGNORECASE,
)
_AVERAGE_KEYS = re.compile(r"(?:\w+_)?ema(?:_\w+)?", re.IGNORECASE)
_MAX_NESTING = 16
# A name consists of all keys around a tensor, and a long key may contain many tensors.
_MAX_NAMES_LENGTH = 2**26


# DeepSpeed ZeRO-3 leaves no whole weight in any of these.
_ZERO_PART = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
_CONVERT_ZERO = (
    "run zero_to_fp32.py, which DeepSpeed writes beside the folder of the checkpoint, and scan the file that it makes"
)


class PyTorch(Format):
    """What `torch.save` writes."""

    name = "pytorch"
    title = "PyTorch"
    suffixes = (".bin", ".pt", ".pth", ".ckpt")
    single_file = "pytorch_model.bin"

    def find_other(self, files: Files) -> WeightFiles | None:
        """Return the only weights file, or its parts."""
        names = tuple(name for name in files.names() if self.recognizes(name))
        if names and all(map(_ZERO_PART.fullmatch, names)):
            raise CheckpointError(f"{files.place} holds the parts of a DeepSpeed ZeRO-3 checkpoint: {_CONVERT_ZERO}")
        if "fp32.pt" in names and files.has("exp_avg.pt"):
            raise CheckpointError(
                f"{files.place} holds one parameter of a DeepSpeed universal checkpoint: convert the checkpoint that it was "
                "made from with zero_to_fp32.py, and scan the file that it makes"
            )
        return super().find_other(files)

    def read_headers(self, files: Files, names: Sequence[str]) -> Headers:
        """Read which bytes of the files are tensors, and what else a training script stored beside them."""
        contents = []
        for name in names:
            contents.append(torch_file(files, name))
            check_tensor_count(sum(len(content.tensors) for content in contents), name)
        return Headers(
            tensors=tuple(entry for content in contents for entry in content.tensors),
            left_out=tuple(skip for content in contents for skip in content.left_out),
        )

    def read_file(self, files: Files, name: str) -> list[TensorEntry]:
        """Read which bytes of a file are tensors; see `read_torch_file`."""
        return read_torch_file(files, name)


@dataclass(frozen=True, kw_only=True)
class TorchFile:
    """The tensors of a file that are weights, in the order of their bytes, and what was left out."""

    tensors: list[TensorEntry]
    left_out: tuple[Skipped, ...]


@dataclass(frozen=True, kw_only=True)
class _Member:
    """A member of an archive and the start of the next one."""

    info: zipfile.ZipInfo
    end: int | None


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where the bytes of a storage are."""

    start: int
    size: int


def read_torch_file(files: Files, name: str) -> list[TensorEntry]:
    """Return the tensors of a PyTorch checkpoint, in the order of their bytes; see `torch_file`."""
    return torch_file(files, name).tensors


def torch_file(files: Files, name: str) -> TorchFile:
    """Return the tensors of a PyTorch checkpoint, in the order of their bytes.

    Of a training checkpoint only the weights are returned: the tensors under `state_dict`, `model` or a similar key, with
    that key removed from their names; what is beside them is left out, with the reason.

    Tensors that share their bytes (tied weights) are entries with the same file, start
    and size. A tensor that is not contiguous cannot be read; the dtype of its entry says so.

    Raises:
        CheckpointError: the file is not a PyTorch checkpoint, can only be read by running code, is incomplete,
            contradicts itself, or holds no model: the state of an optimizer, or a part of every weight.
    """
    stream = _Stream(files, name)
    is_archive = stream.read(4) == b"PK\x03\x04"
    stream.seek(0)
    try:
        pickle, places = _archive(files, name, stream) if is_archive else _legacy(files, name, stream)
    except PickleCodeError as error:
        raise CheckpointError(
            f"{printable(name)} {printable(str(error))}: nothing in it was run; use the model's .safetensors files, or load "
            "it with transformers where you trust it and write it again with save_pretrained()"
        ) from error
    except PickleError as error:
        raise CheckpointError(f"{printable(name)} {error}: download it again") from error
    tensors, left_out = _weights(name, pickle.content)
    entries = [_entry(name, label, tensor, places) for label, tensor in tensors]
    if len({entry.name for entry in entries}) < len(entries):
        _wrong(name, "two tensors of it have the same name")
    return TorchFile(tensors=sorted(entries, key=lambda entry: (entry.start, entry.name)), left_out=left_out)


def _archive(files: Files, name: str, stream: "_Stream") -> tuple[Pickle, dict[str, _Place]]:
    members = _members(name, stream)
    pickles = [member for member in members if member.count("/") == 1 and member.endswith("/data.pkl")]
    root = pickles[0].removesuffix("data.pkl") if len(pickles) == 1 else None
    if root is None or f"{root}constants.pkl" in members:
        _wrong(name, "it is an archive that torch.save did not write (a TorchScript program?)")
    inside = {member.removeprefix(root): info for member, info in members.items() if member.startswith(root)}
    first = _places(files, name, {member: inside[member] for member in ("data.pkl", "byteorder") if member in inside})
    if "byteorder" in first and files.read(name, first["byteorder"].start, 6) != b"little":
        _wrong(name, "its numbers are big-endian, which is not supported")
    if first["data.pkl"].size > MAX_PICKLE_BYTES:
        _wrong(name, f"its data.pkl has {first['data.pkl'].size} bytes, too many to describe weights")
    pickle = read_pickle(BytesIO(files.read(name, first["data.pkl"].start, first["data.pkl"].size)))
    missing = next((key for key in pickle.storages if f"data/{key}" not in inside), None)
    if missing is not None:
        _wrong(name, f"it lacks data/{printable(missing)}, which a tensor needs")
    return pickle, _places(files, name, {key: inside[f"data/{key}"] for key in pickle.storages})


def _members(name: str, stream: "_Stream") -> dict[str, _Member]:
    try:
        with zipfile.ZipFile(cast("IO[bytes]", stream)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise CheckpointError(
            f"{printable(name)} is an incomplete or damaged PyTorch checkpoint ({printable(str(error))}): download it again"
        ) from error
    infos.sort(key=lambda info: info.header_offset)
    ends = [*(info.header_offset for info in infos[1:]), None]
    members = {info.filename: _Member(info=info, end=end) for info, end in zip(infos, ends, strict=True)}
    if len(members) < len(infos):
        _wrong(name, "two members of it have the same name")
    return members


def _places(files: Files, name: str, members: Mapping[str, _Member]) -> dict[str, _Place]:
    """Return where the contents of members are: after a header whose length is in the header itself."""
    file_size = files.size(name)
    for label, member in members.items():
        info = member.info
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            _wrong(name, f"its member {printable(label)} is compressed or encrypted, which torch.save never does")
        if not 0 <= info.header_offset <= file_size - _LOCAL_HEADER.size:
            _wrong(name, f"its member {printable(label)} lies outside of it")
    starts = {label: start for label, member in members.items() if (start := _start_by_alignment(member)) is not None}
    unsure = {label: member.info for label, member in members.items() if label not in starts}
    ranges = [ByteRange(name=name, start=info.header_offset, size=_LOCAL_HEADER.size) for info in unsure.values()]
    for (label, info), header in zip(unsure.items(), files.read_ranges(ranges), strict=True):
        signature, *_, name_length, extra_length = _LOCAL_HEADER.unpack(header.tobytes())
        starts[label] = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if signature != b"PK\x03\x04" or starts[label] + info.file_size > file_size:
            _wrong(name, f"its member {printable(label)} is not where its directory says")
    return {label: _Place(start=starts[label], size=member.info.file_size) for label, member in members.items()}


def _start_by_alignment(member: _Member) -> int | None:
    """Return where a content begins by the two rules of torch.save, or None if they disagree.

    It begins at a multiple of 64 bytes, with just enough padding before it, and ends where a data descriptor stands
    before the next header. Headers that need not be read save a request for every tensor of a remote file.
    """
    if member.end is None or not member.info.flag_bits & _HAS_DESCRIPTOR:
        return None
    shortest = member.info.header_offset + _LOCAL_HEADER.size + len(member.info.orig_filename.encode())
    for descriptor_bytes in (16, 24):
        start = member.end - descriptor_bytes - member.info.file_size
        if start % _ALIGNMENT == 0 and shortest <= start < shortest + _ALIGNMENT + _LONGEST_EXTRA:
            return start
    return None


def _legacy(files: Files, name: str, stream: "_Stream") -> tuple[Pickle, dict[str, _Place]]:
    other_kind = "it is neither an archive as torch.save writes it nor a file of the format before that"
    try:
        magic = read_pickle(stream).content
    except PickleCodeError:
        raise
    except PickleError:
        _wrong(name, other_kind)
    if magic != _LEGACY_MAGIC:
        _wrong(name, other_kind)
    _version, system, pickle, keys = (read_pickle(stream) for _ in range(4))
    if not isinstance(system.content, dict) or system.content.get("little_endian") is not True:
        _wrong(name, "its numbers are big-endian, which is not supported")
    known = isinstance(keys.content, list) and all(isinstance(key, str) for key in keys.content)
    if not known or set(keys.content) != set(pickle.storages):
        _wrong(name, "it holds other storages than its tensors need")
    at, file_size = stream.tell(), files.size(name)
    places: dict[str, _Place] = {}
    for key in keys.content:
        storage = pickle.storages[key]
        places[key] = _Place(start=at + 8, size=storage.entries * ITEM_BYTES[storage.dtype])
        at = places[key].start + places[key].size
    if at > file_size:
        _wrong(name, f"it has {file_size} bytes and its storages end at byte {at}")
    counts = files.read_ranges([ByteRange(name=name, start=place.start - 8, size=8) for place in places.values()])
    for key, count in zip(places, counts, strict=True):
        if int.from_bytes(count.tobytes(), "little") != pickle.storages[key].entries:
            _wrong(name, f"its storage {printable(key)} does not have the size that its tensors need")
    return pickle, places


def _entry(file: str, name: str, tensor: PickledTensor, places: Mapping[str, _Place]) -> TensorEntry:
    def wrong(what: str) -> NoReturn:
        _wrong(file, f"its tensor '{printable(name)}' {what}")

    try:
        name.encode()
    except UnicodeEncodeError:
        wrong("has a name that is not Unicode text")
    if math.prod(tensor.shape) > _MAX_ENTRIES:
        wrong("has a shape larger than any file")
    if tensor.storage is None or tensor.kind or tensor.dtype not in ITEM_BYTES:
        dtype = f"{tensor.dtype} ({tensor.kind})" if tensor.kind else tensor.dtype
        return TensorEntry(name=name, dtype=dtype, shape=tensor.shape, file=file, start=0, size=0)
    width = ITEM_BYTES[tensor.dtype]
    place = places[tensor.storage.key]
    start = tensor.offset * width + tensor.storage.offset * ITEM_BYTES[tensor.storage.dtype]
    size = math.prod(tensor.shape) * width
    row_major = _is_contiguous(tensor.shape, tensor.strides)
    column_major = not row_major and len(tensor.shape) == 2 and _is_contiguous(tensor.shape[::-1], tensor.strides[::-1])
    if not row_major and not column_major:
        dtype = f"{tensor.dtype} (not contiguous)"
        return TensorEntry(name=name, dtype=dtype, shape=tensor.shape, file=file, start=place.start, size=0)
    if start + size > place.size:
        wrong(f"ends {start + size - place.size} bytes after the storage that it is part of")
    return TensorEntry(
        name=name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        file=file,
        start=place.start + start,
        size=size,
        column_major=column_major,
    )


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Tell whether the entries are stored in row-major order without gaps (strides of dimensions of size 1 are arbitrary)."""
    expected = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent == 0:
            return True
        if extent > 1 and stride != expected:
            return False
        expected *= extent
    return True


def _weights(file: str, content: Any) -> tuple[list[tuple[str, PickledTensor]], tuple[Skipped, ...]]:
    """Return the names and tensors of the weights in the content of a pickle, and what is left out beside them."""
    beside: dict[str, tuple[Any, str]] = {}
    path: tuple[str, ...] = ()
    for _ in range(_MAX_NESTING):
        if not isinstance(content, dict):
            break
        _check_state(file, content)
        inside = next(
            (key for key in _WEIGHTS_KEYS if isinstance(content.get(key), dict) and _holds(content[key])), None
        )
        others = {str(key): value for key, value in content.items() if key != inside}
        averages = {key for key in others if _AVERAGE_KEYS.fullmatch(key)}
        networks = [
            key for key in others if key not in averages and not _TRAINER_KEYS.match(key) and _is_network(others[key])
        ]
        for key, value in others.items():
            if _TRAINER_KEYS.match(key) or (inside is not None and isinstance(value, PickledTensor)):
                reason = "state of the training: not a weight"
            elif key in averages and isinstance(value, dict) and (inside is not None or networks):
                reason = "a moving average of the weights (EMA): a copy"
            elif inside is not None:
                reason = f"beside the weights in '{inside}': scan it from a file of its own"
            else:
                continue
            beside[".".join((*path, key))] = (value, reason)
        if inside is None:
            content = {key: value for key, value in content.items() if ".".join((*path, str(key))) not in beside}
            break
        content, path = content[inside], (*path, inside)
    found: list[tuple[str, PickledTensor]] = []
    optimizers: list[tuple[tuple[str, ...], Any]] = []
    length = 0
    for inner, tensor in _tensors(content, set(), optimizers):
        own = sum(map(len, inner)) + len(inner)
        length += own
        if len(found) == MAX_TENSORS or length > _MAX_NAMES_LENGTH or own > 2 * MAX_NAME_BYTES:
            _wrong(file, "it has more tensors, or longer names of them, than any model")
        name = ".".join(inner) or "tensor"
        check_name(name, file)
        found.append((name, tensor))
    beside |= {".".join((*path, *inner)): (value, "state of an optimizer: not a weight") for inner, value in optimizers}
    left_out = _left_out(file, beside)
    if left_out and not found:
        raise CheckpointError(
            f"{printable(file)} holds the state of a training and no weights ({printable(left_out[0].tensor)}): name the file "
            "that holds the model"
        )
    return found, left_out


def _check_state(file: str, content: dict[Any, Any]) -> None:
    """Refuse what is not a model, or only a part of every weight, by the keys of DeepSpeed and of optimizers."""
    if _is_optimizer(content):
        raise CheckpointError(
            f"{printable(file)} holds the state of an optimizer, not a model: name the file of the weights"
        )
    if "optimizer_state_dict" in content and isinstance(content["optimizer_state_dict"], dict):
        state = content["optimizer_state_dict"]
        if "zero_stage" in state or "partition_count" in state:
            raise CheckpointError(
                f"{printable(file)} holds a part of the state of DeepSpeed's optimizer: {_CONVERT_ZERO}"
            )
    if "ds_version" not in content and "param_shapes" not in content:
        return
    if any(0 in tensor.shape for _, tensor in _tensors(content.get("module"), set(), [])):
        raise CheckpointError(
            f"{printable(file)} holds placeholders without entries instead of weights, as DeepSpeed ZeRO-3 writes them: "
            f"{_CONVERT_ZERO}"
        )
    parts = content.get("mp_world_size")
    if type(parts) is int and parts > 1:
        raise CheckpointError(
            f"{printable(file)} holds one of {parts} parts of every weight (model parallelism): {_CONVERT_ZERO}"
        )


def _left_out(file: str, beside: Mapping[str, tuple[Any, str]]) -> tuple[Skipped, ...]:
    """Return what holds tensors, with their number. Containers that are in several places are counted once."""
    skipped: list[Skipped] = []
    seen: set[int] = set()
    length = 0
    for name, (value, reason) in beside.items():
        count = sum(1 for _ in _tensors(value, seen))
        length += len(name)
        if length > _MAX_NAMES_LENGTH:
            _wrong(file, "it has more tensors, or longer names of them, than any model")
        if count:
            what = "" if isinstance(value, PickledTensor) else f"{count} {'tensor' if count == 1 else 'tensors'}, "
            skipped.append(Skipped(tensor=name, reason=what + reason))
    return tuple(skipped)


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, dict) and "param_groups" in value and "state" in value


def _is_network(value: Any) -> bool:
    return isinstance(value, dict) and not _is_optimizer(value) and _holds(value)


def _holds(value: Any) -> bool:
    """Tell whether there is a tensor that is not the state of an optimizer."""
    return next(_tensors(value, set(), []), None) is not None


def _tensors(
    content: Any, seen: set[int], optimizers: list[tuple[tuple[str, ...], Any]] | None = None
) -> Iterator[tuple[tuple[str, ...], PickledTensor]]:
    """Yield the tensors in nested containers, each with the keys that lead to it.

    Every container is entered once: they may hold each other, or be many times as many along all paths as they are.

    Args:
        content: a tensor or a container.
        seen: the containers that were entered; extended.
        optimizers: if given, the state of an optimizer is put here, with its keys, and not entered.
    """
    levels: list[Iterator[tuple[tuple[str, ...], Any]]] = [iter([((), content)])]
    while levels:
        path, value = next(levels[-1], ((), None))
        if value is None:
            levels.pop()
        elif isinstance(value, PickledTensor):
            yield path, value
        elif optimizers is not None and _is_optimizer(value):
            optimizers.append((path, value))
        elif isinstance(value, dict | list | tuple) and id(value) not in seen and len(path) < _MAX_NESTING:
            seen.add(id(value))
            levels.append(_inside(path, value))


def _inside(
    path: tuple[str, ...], container: dict[Any, Any] | list[Any] | tuple[Any, ...]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in container.items() if isinstance(container, dict) else enumerate(container):
        if isinstance(value, PickledTensor | dict | list | tuple):
            yield (*path, str(key)), value


def _wrong(name: str, what: str) -> NoReturn:
    raise CheckpointError(f"{printable(name)} is not a PyTorch checkpoint that can be read: {what}")


class _Stream:
    """A file object for zipfile and pickletools, read in blocks of limited size.

    A request for more is answered by CheckpointError, before anything is allocated.
    """

    def __init__(self, files: Files, name: str) -> None:
        self._files, self._name = files, name
        self._size = files.size(name)
        self._at = 0
        self._block, self._block_start = b"", 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0, /) -> int:
        at = offset + (0, self._at, self._size)[whence]
        if at < 0:
            raise ValueError(f"no byte {at}")
        self._at = at
        return at

    def read(self, size: int = -1, /) -> bytes:
        left = max(self._size - self._at, 0)
        size = left if size < 0 else min(size, left)
        if size > _MAX_READ_BYTES:
            _wrong(self._name, f"it asks for {size} bytes of data other than weights")
        begin = self._at - self._block_start
        if begin < 0 or begin + size > len(self._block):
            # Near the end the last block: the parts of an archive's end are found from its last byte backwards.
            self._block_start = min(self._at, max(self._size - max(size, _LAST_BLOCK_BYTES), 0))
            # Blocks grow with what comes before the weights, of which there may be nothing but a few bytes.
            wanted = max(size, _SMALLEST_BLOCK_BYTES, min(self._at // 8, _LARGEST_BLOCK_BYTES))
            self._block = self._files.read(self._name, self._block_start, wanted)
            begin = self._at - self._block_start
        self._at += size
        return self._block[begin : begin + size]

    def readline(self) -> bytes:
        line = b""
        while not line.endswith(b"\n") and len(line) < _MAX_LINE_BYTES:
            byte = self.read(1)
            if not byte:
                break
            line += byte
        return line
