"""The bytes of one stored tensor as numbers, and the dtypes that tensors are stored in."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scanner.checkpoint.model import TensorEntry
from scanner.checkpoint.names import printable
from scanner.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

TORCH_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""The stored dtypes that need no decoding, and their names in torch."""

DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "C64": 64,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8,
    "BOOL": 8,
}  # fmt: skip
"""Bits per entry of every dtype that a safetensors file may name."""

_PART_DTYPES = {
    "I8": "int8",
    "U8": "uint8",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "F8_E8M0": "float8_e8m0fnu",
}
"""Other dtypes of the parts of quantized weights: codes, packed words, scales that are powers of two."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The bytes of one stored tensor: a flat uint8 array of `entry.size`."""

    entry: TensorEntry
    content: "NDArray[np.uint8]"

    def tensor(self) -> "torch.Tensor":
        """Return the numbers in the stored dtype and shape; the tensor shares memory with `content`.

        Raises:
            CheckpointError: the dtype is not supported, or the size does not match the shape.
        """
        import math

        import torch

        name = TORCH_DTYPES.get(self.entry.dtype) or _PART_DTYPES.get(self.entry.dtype)
        if name is None:
            raise CheckpointError(
                f"{printable(self.entry.name)}: {printable(self.entry.dtype)} cannot be read without decoding"
            )
        dtype: torch.dtype = getattr(torch, name)
        if self.entry.size != math.prod(self.entry.shape) * dtype.itemsize:
            raise CheckpointError(
                f"{printable(self.entry.name)}: {self.entry.size} bytes do not make a tensor of shape {self.entry.shape}"
            )
        if self.entry.size == 0:
            return torch.empty(self.entry.shape, dtype=dtype)  # torch cannot view an empty array as another dtype
        numbers = torch.from_numpy(self.content).view(dtype)
        if self.entry.column_major:
            return numbers.reshape(self.entry.shape[::-1]).T
        return numbers.reshape(self.entry.shape)
