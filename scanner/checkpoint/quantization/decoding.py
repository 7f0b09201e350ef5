"""The decoders of quantized and reparametrized weights: from stored bytes to numbers, one function per codec."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from scanner.checkpoint.quantization.float4 import decode_float4
from scanner.checkpoint.quantization.packed_integers import decode_awq, decode_gptq, decode_packed_integers
from scanner.checkpoint.quantization.reparametrized import decode_weight_norm
from scanner.checkpoint.quantization.scaled import decode_scaled
from scanner.checkpoint.quantization.stored import Stored

if TYPE_CHECKING:
    import torch

    from scanner.rmt.decomposition import LowRank

Decoder = Callable[[Stored, Mapping[str, Stored], Mapping[str, Any]], "torch.Tensor | LowRank"]
"""(weight, companions by kind, settings) -> CPU tensor of the weight's shape, or its two factors.

Raises CheckpointError when the stored tensors do not fit each other or the codec.
"""


def _decode_plain(weight: Stored, companions: Mapping[str, Stored], settings: Mapping[str, Any]) -> "torch.Tensor":
    import torch

    numbers = weight.tensor()
    # torch supports almost no arithmetic on 8-bit floats, not even an absolute value.
    return numbers.to(torch.float32) if numbers.dtype.itemsize == 1 else numbers


DECODERS: Mapping[str, Decoder] = {
    "": _decode_plain,
    "scaled": decode_scaled,
    "float4": decode_float4,
    "gptq": decode_gptq,
    "awq": decode_awq,
    "packed_integers": decode_packed_integers,
    "weight_norm": decode_weight_norm,
}
"""Decoder of each codec (`MatrixRef.codec`) that does not belong to one file format."""
