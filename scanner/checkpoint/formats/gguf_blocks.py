"""Decodes the block formats of GGUF with the gguf package."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scanner.checkpoint.names import printable
from scanner.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from scanner.checkpoint.quantization.stored import Stored

CODEC = "gguf"

READABLE_GGUF_TYPES = frozenset(
    "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS "
    "TQ1_0 TQ2_0 MXFP4 NVFP4".split()
)
"""The types that gguf decodes; F64, F32, F16 and BF16 need no decoding. Of others (Q8_K, Q1_0) it knows only the size."""

# gguf needs many times the memory of its result, so blocks are decoded in pieces.
_PIECE_ENTRIES = 2**20


def decode_gguf(weight: "Stored", companions: "Mapping[str, Stored]", settings: Mapping[str, Any]) -> "torch.Tensor":
    """Decode a tensor of blocks to float32, in the shape of its entry.

    Raises:
        CheckpointError: the type cannot be decoded, or the number of bytes does not match the shape.
    """
    import numpy as np
    import torch
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    entry = weight.entry
    if entry.dtype not in READABLE_GGUF_TYPES:
        raise CheckpointError(f"{printable(entry.name)}: the gguf package does not decode {printable(entry.dtype)}")
    ggml_type = GGMLQuantizationType[entry.dtype]
    block_entries, block_bytes = GGML_QUANT_SIZES[ggml_type]
    entries = math.prod(entry.shape)
    if entries % block_entries or entry.size != entries // block_entries * block_bytes:
        raise CheckpointError(
            f"{printable(entry.name)}: {entry.size} bytes do not make a {entry.dtype} tensor of shape {entry.shape}"
        )
    # A row is a whole number of blocks, so pieces need not end at rows.
    decoded = np.empty(entries, dtype=np.float32)
    piece = _PIECE_ENTRIES // block_entries
    # A damaged scale becomes an infinity among the entries, which the analysis reports.
    with np.errstate(all="ignore"):
        for start in range(0, entries // block_entries, piece):
            blocks = weight.content[start * block_bytes : (start + piece) * block_bytes]
            numbers = dequantize(blocks[None], ggml_type)[0]
            decoded[start * block_entries : start * block_entries + len(numbers)] = numbers
    return torch.from_numpy(decoded).reshape(entry.shape)
