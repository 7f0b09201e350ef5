"""From stored bytes to numbers: one decoder a codec, chosen by `MatrixRef.codec`."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from scanner.checkpoint.quantization.stored import Stored

if TYPE_CHECKING:
    import torch

    from scanner.rmt.decomposition import LowRank

Decoder = Callable[[Stored, Mapping[str, Stored], Mapping[str, Any]], "torch.Tensor | LowRank"]
"""(weight, companions by what they are, settings) -> CPU tensor (or factors) of the logical shape. Raises CheckpointError."""


def _plain(weight: Stored, companions: Mapping[str, Stored], settings: Mapping[str, Any]) -> "torch.Tensor":
    import torch

    numbers = weight.tensor()
    # torch computes next to nothing in 8 bits, not even an absolute value.
    return numbers.to(torch.float32) if numbers.dtype.itemsize == 1 else numbers


def decoders() -> dict[str, Decoder]:
    """Every codec; imported when the first matrix is read, because describing checkpoints must not wait for torch."""
    from scanner.checkpoint.formats.adapters import decode_lora
    from scanner.checkpoint.formats.gguf_blocks import decode_gguf
    from scanner.checkpoint.quantization.float4 import decode_float4
    from scanner.checkpoint.quantization.packed_integers import decode_awq, decode_gptq, decode_packed_integers
    from scanner.checkpoint.quantization.scaled import decode_scaled

    return {
        "": _plain,
        "lora": decode_lora,
        "gguf": decode_gguf,
        "scaled": decode_scaled,
        "float4": decode_float4,
        "gptq": decode_gptq,
        "awq": decode_awq,
        "packed_integers": decode_packed_integers,
    }


def decode(
    codec: str, weight: Stored, companions: Mapping[str, Stored], settings: Mapping[str, Any]
) -> "torch.Tensor | LowRank":
    """Decode one weight; one that is stored as the factors of a product stays in factors.

    Raises:
        CheckpointError: the stored tensors do not fit each other or the codec.
    """
    return decoders()[codec](weight, companions, settings)
