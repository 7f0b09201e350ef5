"""Reads the pickles of PyTorch checkpoints as data: nothing that they name is imported, called or executed.

A pickle is a program for a stack machine that may import and call anything. `torch.load(weights_only=True)` allows it to
call a short list of functions. Here the same functions are recognized but not called: a tensor becomes a description of the
bytes that it consists of. Time and memory are limited by the size of the pickle: a call cannot copy more items than there
were instructions.
"""

import pickletools
from dataclasses import dataclass, replace
from typing import IO, Any, Protocol, cast

MAX_PICKLE_BYTES = 16 * 2**20
MAX_INSTRUCTIONS = 4_000_000
"""About 35 instructions describe a tensor; a million of the shortest ones create objects of a hundred megabytes."""

STORAGE_DTYPES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "ComplexDoubleStorage": "C128",
    "QInt8Storage": "QI8", "QUInt8Storage": "QU8", "QInt32Storage": "QI32", "UntypedStorage": "U8",
}  # fmt: skip
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "uint16": "U16", "uint32": "U32", "uint64": "U64", "complex64": "C64", "complex128": "C128",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip

_OTHER_TENSORS = {
    "_rebuild_qtensor": "quantized",
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_meta_tensor_no_storage": "meta",
}
_RECOGNIZED = {
    "torch": {
        *STORAGE_DTYPES, *DTYPES, "Size", "device", "Tensor", "complex32", "quint8", "qint8", "qint32", "per_tensor_affine",
        "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric", "per_channel_affine_float_qparams",
    },
    "torch._utils": {
        "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter",
        "_rebuild_parameter_with_state", *_OTHER_TENSORS,
    },
    "torch.cuda": {*STORAGE_DTYPES},
    "torch.storage": {"UntypedStorage", "TypedStorage"},
    "torch._tensor": {"_rebuild_from_type_v2"},
    "torch.nn.parameter": {"Parameter"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict", "Counter"},
    "_codecs": {"encode"},
    "builtins": {"set", "complex", "bytearray"},
    "__builtin__": {"set", "complex", "bytearray"},
}  # fmt: skip
"""What `torch.load(weights_only=True)` allows by default, in the modules that files spell."""

_LITERALS = frozenset(
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

_MAX_DIMENSIONS = 64
_MAX_NUMBER = 2**63
# Longer tuples take long to match.
_MAX_ARGUMENTS = 16


class PickleError(Exception):
    """A pickle that cannot be read; the message follows the name of the file."""


class PickleCodeError(PickleError):
    """A pickle that can only be loaded by running code that weights do not need."""


class Stream(Protocol):
    """The file object that pickles are read from."""

    def read(self, size: int, /) -> bytes:
        """Return `size` bytes, fewer only at the end of the file."""

    def readline(self) -> bytes:
        """Return the bytes up to and including the next newline."""

    def tell(self) -> int:
        """Return the position."""


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class that the pickle names."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Opaque:
    """Something whose contents do not matter for weights."""

    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """A contiguous array of `entries` numbers, found in the file by `key`; a view begins `offset` entries after its start."""

    dtype: str
    key: str
    entries: int
    offset: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PickledTensor:
    """A tensor described by its place: `offset` and `strides` count entries of `dtype` in `storage`.

    `kind` is empty for plain tensors; `quantized`, `sparse` and `meta` tensors cannot be read.
    """

    storage: Storage | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Pickle:
    """The content of a pickle: dictionaries, lists, tuples, numbers, text, None, `PickledTensor`, `Name` and `Opaque`.

    Keys of dictionaries are text, numbers of at most 64 bits, or None: no other key can name a weight.
    `storages` are all storages that the pickle names, without views, by key.
    """

    content: Any
    storages: dict[str, Storage]


def read_pickle(stream: Stream) -> Pickle:
    """Read one pickle; the stream is then at its end.

    Raises:
        PickleError: it is damaged, longer than `MAX_PICKLE_BYTES`, or does more than describe weights.
    """
    machine = _Machine()
    start = stream.tell()
    try:
        for done, (opcode, argument, position) in enumerate(pickletools.genops(cast("IO[bytes]", stream))):
            if opcode.name == "STOP":
                break
            if done > MAX_INSTRUCTIONS or position is None or position - start > MAX_PICKLE_BYTES:
                raise PickleError("holds a pickle that is too long to describe weights")
            machine.step(opcode.name, argument)
        return Pickle(content=machine.result(), storages=machine.storages)
    except ValueError as error:
        raise PickleError("holds a damaged pickle") from error


class _Machine:
    """The stack machine. Raises ValueError if the stack or the memo do not hold what an instruction needs."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0
        self._copied = 0
        self.storages: dict[str, Storage] = {}

    def step(self, instruction: str, argument: Any) -> None:
        self._steps += 1
        match instruction:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._marked.append(self._stack)
                self._stack = []
            case "EMPTY_DICT":
                self._push({})
            case "EMPTY_LIST":
                self._push([])
            case "EMPTY_SET":
                self._push(Opaque("set"))
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._push(tuple(self._pop(_TUPLES[instruction])))
            case "TUPLE":
                self._push(tuple(self._pop_to_mark()))
            case "SETITEM":
                _set_items(*self._above(self._pop(2)))
            case "SETITEMS":
                _set_items(*self._above(self._pop_to_mark()))
            case "APPEND":
                _append(*self._above(self._pop(1)))
            case "APPENDS" | "ADDITEMS":
                _append(*self._above(self._pop_to_mark()))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._memo[len(self._memo) if argument is None else argument] = self._top()
            case "BINGET" | "LONG_BINGET":
                self._recall(argument)
            case "GLOBAL":
                self._push(_recognized(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self._push(_recognized(*self._pop(2)))
            case "BINPERSID":
                storage = _storage(*self._pop(1))
                self.storages.setdefault(storage.key, replace(storage, offset=0))
                self._push(storage)
            case "REDUCE" | "NEWOBJ":
                function, arguments = self._pop(2)
                self._count_copied(arguments)
                self._push(_result(function, arguments))
            case "BUILD":
                self._pop(1)  # the state of a dictionary or a parameter, which holds no weights
            case _:
                self._literal(instruction, argument)

    def result(self) -> Any:
        return self._top()

    def _count_copied(self, arguments: Any) -> None:
        """Count the pairs that dictionaries are made from: a list in the memo may be the argument of many calls."""
        match arguments:
            case (list(pairs),):
                self._copied += len(pairs)
        if self._copied > self._steps:
            raise PickleError("holds a pickle that copies the same objects again and again, which weights do not need")

    def _literal(self, instruction: str, argument: Any) -> None:
        if instruction in _LITERALS:
            self._push(argument)
        elif instruction in _CONSTANTS:
            self._push(_CONSTANTS[instruction])
        else:
            raise PickleCodeError(f"needs the pickle instruction {instruction}, which weights do not")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _top(self) -> Any:
        if not self._stack:
            raise ValueError("the stack is empty")
        return self._stack[-1]

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("the stack is empty")
        items = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return items

    def _pop_to_mark(self) -> list[Any]:
        if not self._marked:
            raise ValueError("there is no mark")
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _above(self, items: list[Any]) -> tuple[Any, list[Any]]:
        return self._top(), items

    def _recall(self, place: int) -> None:
        if place not in self._memo:
            raise ValueError(f"nothing was remembered as {place}")
        self._push(self._memo[place])


def _append(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Opaque):
        raise ValueError("only lists are appended to")


def _set_items(target: Any, items: list[Any]) -> None:
    if isinstance(target, Opaque):
        return
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError("only dictionaries have items")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing a tuple nested a million times crashes the process, and Python refuses to print a number of a million digits.
        if key is None or isinstance(key, str | float) or (isinstance(key, int) and abs(key) < _MAX_NUMBER):
            target[key] = value
        elif isinstance(value, PickledTensor):
            raise PickleError("has a tensor whose name is neither text nor a number of 64 bits")


def _recognized(module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name that is not text")
    if name not in _RECOGNIZED.get(module, ()):
        raise PickleCodeError(f"needs the Python object {module}.{name}, which weights do not")
    return Name(module, name)


def _storage(identifier: Any) -> Storage:
    if not isinstance(identifier, tuple) or len(identifier) > _MAX_ARGUMENTS:
        raise ValueError("a storage that is not described as one")
    match identifier:
        case ("storage", Name(name=kind), str(key), _, int(entries), *view) if kind in STORAGE_DTYPES:
            storage = Storage(dtype=STORAGE_DTYPES[kind], key=key, entries=entries)
            match view:
                case [] | [None] if _sizes((entries,)):
                    return storage
                case [(_, int(offset), int(length))] if _sizes((offset, length)) and offset + length <= entries:
                    return replace(storage, offset=offset)
    raise ValueError("a storage that is not described as one")


def _result(function: Any, arguments: Any) -> Any:
    """Return what a call would have returned, as far as weights need it."""
    if not isinstance(function, Name) or not isinstance(arguments, tuple) or len(arguments) > _MAX_ARGUMENTS:
        raise ValueError("a call of something that has no name")
    match function.name, arguments:
        case (("_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3"), _):
            return _tensor(arguments)
        case (("_rebuild_parameter" | "_rebuild_parameter_with_state" | "Parameter"), (PickledTensor() as tensor, *_)):
            return tensor
        case "_rebuild_from_type_v2", (Name() as inner, _, tuple(inner_arguments), *_) if inner != function:
            return _result(inner, inner_arguments)
        case (("_rebuild_qtensor" | "_rebuild_sparse_tensor" | "_rebuild_meta_tensor_no_storage"), _):
            return _other_tensor(function.name, arguments)
        case "Size", (tuple(sizes),):
            return sizes
        case "OrderedDict", ():
            return {}
        case "OrderedDict", (list(pairs),) if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            filled: dict[Any, Any] = {}
            _set_items(filled, [item for pair in pairs for item in pair])
            return filled
    return Opaque(function.name)


def _tensor(arguments: tuple[Any, ...]) -> PickledTensor:
    match arguments:
        case (Storage() as storage, int(offset), tuple(shape), tuple(strides), *rest) if (
            len(shape) == len(strides) and _sizes((offset,)) and _sizes(shape) and _sizes(strides)
        ):
            # The third version, for newer dtypes, names the dtype, because its storage has none.
            dtype = next((DTYPES.get(item.name, item.name) for item in rest if isinstance(item, Name)), storage.dtype)
            return PickledTensor(storage=storage, dtype=dtype, offset=offset, shape=shape, strides=strides)
    raise ValueError("a tensor that is not described as one")


def _other_tensor(function: str, arguments: tuple[Any, ...]) -> PickledTensor:
    match arguments:
        case (Storage(dtype=dtype), int(), tuple(shape), *_):  # quantized
            pass
        case (Opaque(), (_, PickledTensor(dtype=dtype), tuple(shape), *_), *_):  # sparse
            pass
        case (Name(name=name), tuple(shape), *_):  # meta
            dtype = DTYPES.get(name, name)
        case _:
            raise ValueError("a tensor that is not described as one")
    if not _sizes(shape):
        raise ValueError("a shape that is none")
    return PickledTensor(storage=None, dtype=dtype, offset=0, shape=shape, strides=(), kind=_OTHER_TENSORS[function])


def _sizes(numbers: tuple[Any, ...]) -> bool:
    # Limited, because numbers of a million digits take long to multiply.
    return len(numbers) <= _MAX_DIMENSIONS and all(type(n) is int and 0 <= n < _MAX_NUMBER for n in numbers)
