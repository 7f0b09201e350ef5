"""Arrays and tensors in memory: dtype, shape and bytes of each, or why it cannot be read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scanner.checkpoint.model import MAX_DIMENSIONS
from scanner.checkpoint.names import printable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "complex64": "C64",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip
"""Names of dtypes in torch and numpy, and in stored tensors. Others keep their names, and no weight has them."""

_MAX_SHOWN = 80


@dataclass(frozen=True, kw_only=True)
class Array:
    """An array or tensor that can be read.

    Attributes:
        dtype: name of the dtype in stored tensors, or in its library if no stored tensor has it.
        shape: its shape.
        size: number of bytes.
        place: what two names of the same memory share; None if nothing is known.
        read: returns the bytes from one offset up to another, in row-major order, as a new uint8 array.
    """

    dtype: str
    shape: tuple[int, ...]
    size: int
    place: tuple[object, ...] | None
    read: "Callable[[int, int], NDArray[np.uint8]]"

    def transposed(self) -> "Array":
        """Return the transposed matrix."""
        width = self.size // (self.shape[0] * self.shape[1])

        def read(start: int, stop: int) -> "NDArray[np.uint8]":
            stored = self.read(0, self.size).reshape(*self.shape, width)
            return stored.transpose(1, 0, 2).reshape(-1)[start:stop].copy()

        return Array(dtype=self.dtype, shape=self.shape[::-1], size=self.size, place=self.place, read=read)


def described(value: object) -> Array | str:
    """Return an array or tensor as it can be read, or the reason why it cannot: one line without its name.

    Nothing is copied, computed or moved to another device.
    """
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return _of_tensor(value)
    if isinstance(value, np.ma.MaskedArray):
        return "an array with a mask: fill it (numpy.ma.filled), or leave the mask out"
    if not isinstance(value, np.ndarray) and hasattr(value, "__array__") and not isinstance(value, type):
        try:
            value = np.asarray(value)
        except Exception as error:  # of another library, whose arrays may be on a device that is gone
            return f"{_named(value)} that cannot be converted to a numpy array ({_line(error)})"
    if isinstance(value, np.ndarray):
        return _of_array(value)
    if isinstance(value, tuple) and any(isinstance(one, torch.Tensor) and one.is_quantized for one in value):
        return "quantized by torch (packed parameters): pass the model from before"
    return f"{_named(value)}: not an array"


def computed(dtype: str, shape: tuple[int, ...], compute: "Callable[[], torch.Tensor]") -> Array:
    """Return a tensor that is computed whenever it is read, such as the effective weight of a parametrized module.

    Args:
        dtype: name of its dtype in torch.
        shape: its shape.
        compute: computes it; always the same.
    """
    import torch

    size = getattr(torch, dtype).itemsize
    for extent in shape:
        size *= extent

    def read(start: int, stop: int) -> "NDArray[np.uint8]":
        return _bytes_of(compute(), start, stop)

    return Array(dtype=_DTYPES.get(dtype, dtype), shape=shape, size=size, place=None, read=read)


def _of_tensor(tensor: "torch.Tensor") -> Array | str:
    import torch
    from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    kind = type(tensor).__name__
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        return "not initialized: its shape is known after the first forward pass, so run one"
    if tensor.device.type == "meta" or kind == "FakeTensor":
        return (
            "on the meta device, without numbers: load the weights (without init_empty_weights, torch.device('meta') or "
            "offloading to a disk)"
        )
    if kind == "DTensor":
        return "a DTensor, of which this process has one shard: gather it (full_tensor, or a full state dict)"
    own_dispatch = getattr(type(tensor), "__torch_dispatch__", None) is not torch.Tensor.__torch_dispatch__
    if is_traceable_wrapper_subclass(tensor) or own_dispatch:
        package = type(tensor).__module__.partition(".")[0]
        return (
            f"{_named(tensor)} of {printable(package)}, not plain numbers: dequantize it, or pass the model from before"
        )
    if tensor.is_quantized:
        return f"quantized by torch ({str(tensor.dtype).removeprefix('torch.')}): pass the model from before, or its dequantize()"
    if tensor.is_nested or tensor.layout != torch.strided:
        what = "nested" if tensor.is_nested else f"sparse ({str(tensor.layout).removeprefix('torch.')})"
        return f"{what}: pass its to_dense()" if not tensor.is_nested else "nested: not a matrix"
    if tensor.dim() > MAX_DIMENSIONS:
        return f"{tensor.dim()}-D: not a matrix"
    plain = tensor.detach().as_subclass(torch.Tensor)
    try:
        start = plain.data_ptr() if plain.numel() else 0
        place = (str(plain.device), start, plain.dtype, tuple(plain.shape), plain.stride()) if start else None
    except RuntimeError:  # a tensor without memory of its own, for example of torch.func
        return f"a {printable(kind)} without memory: pass plain tensors"
    dtype = str(plain.dtype).removeprefix("torch.")
    return Array(
        dtype=_DTYPES.get(dtype, dtype),
        shape=tuple(plain.shape),
        size=plain.numel() * plain.element_size(),
        place=place,
        read=lambda first, last: _bytes_of(plain, first, last),
    )


def _bytes_of(tensor: "torch.Tensor", start: int, stop: int) -> "NDArray[np.uint8]":
    """Return bytes of a tensor on any device; only those of the range are copied from a GPU."""
    import torch

    with torch.no_grad():
        width = tensor.element_size()
        flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        first, last = start // width, -(-stop // width)
        part = flat[first:last].contiguous().view(torch.uint8).cpu()
        found: NDArray[np.uint8] = part.numpy()[start - first * width : stop - first * width].copy()
        return found


def _of_array(array: "NDArray[Any]") -> Array | str:
    import numpy as np

    if array.dtype.kind in "OSUVMm" and array.dtype.name not in _DTYPES:
        return f"an array of {printable(str(array.dtype))[:_MAX_SHOWN]}: not numbers"
    native = array.dtype.newbyteorder("=")

    def read(start: int, stop: int) -> "NDArray[np.uint8]":
        stored = np.ascontiguousarray(array, dtype=native).reshape(-1).view(np.uint8)
        return np.array(stored[start:stop])

    at = array.__array_interface__["data"][0] if array.size else None
    return Array(
        dtype=_DTYPES.get(native.name, native.name),
        shape=tuple(array.shape),
        size=array.size * native.itemsize,
        place=None if at is None else ("numpy", at, array.dtype.str, array.shape, array.strides),
        read=read,
    )


def _named(value: object) -> str:
    name = printable(type(value).__name__)
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"


def _line(error: Exception) -> str:
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])
