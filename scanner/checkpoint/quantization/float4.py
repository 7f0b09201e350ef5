"""Weights stored as 4-bit floating-point numbers, two per byte, with one scale per group of columns: MXFP4 and NVFP4.

    W[i, j] = E2M1[code[i, j]] * scale[i, j // group]  (* outer scale, or / divisor)

Conventions: E2M1 and E8M0 are those of the OCP Microscaling Formats (MX) specification 1.0 (sections 5.3.3 and 5.4.1);
the even column is in the low half of a byte. MXFP4 has groups of 32 with E8M0 scales: gpt-oss (`*_blocks`, with the
groups as a dimension of their own, and `*_scales`) and compressed-tensors mxfp4-pack-quantized. NVFP4 has groups of 16
with F8_E4M3 scales and one more scale per tensor: compressed-tensors divides by `weight_global_scale`, ModelOpt
multiplies by `weight_scale_2`.

A gpt-oss stack is stored as (experts, out, in); transformers transposes it after decoding, for its forward pass.
"""

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from scanner.checkpoint.model import LogicalWeight
from scanner.checkpoint.names import printable
from scanner.checkpoint.quantization.parts import EXPONENTS, FLOATS, Parts
from scanner.checkpoint.quantization.scaled import scale_values
from scanner.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from scanner.checkpoint.quantization.stored import Stored

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_CHUNK_BYTES = 2**21


def describe_float4_blocks(parts: Parts, settings: Mapping[str, Any]) -> LogicalWeight:
    """Describe MXFP4 blocks of shape (..., rows, groups, 16); see `Describe`."""
    shape, scale = parts.entry.shape, parts.need("scale", EXPONENTS)
    if shape[-1] != 16 or scale.shape != shape[:-1]:
        raise CheckpointError(f"scales of shape {scale.shape} do not fit blocks of shape {shape}")
    return parts.weight("float4", "MXFP4", (*shape[:-2], shape[-2] * 32), {"group": 32}, "scale")


def describe_float4_packed(parts: Parts, settings: Mapping[str, Any]) -> LogicalWeight:
    """Describe MXFP4 or NVFP4 of shape (..., rows, cols / 2), told apart by the dtype of their scales; see `Describe`."""
    scale = parts.need("scale", EXPONENTS | {"F8_E4M3"})
    if len(parts.entry.shape) < 2:
        raise CheckpointError(f"{len(parts.entry.shape)}-D: not a matrix")
    shape = (*parts.entry.shape[:-1], parts.entry.shape[-1] * 2)
    dtype, group = ("NVFP4", 16) if scale.dtype == "F8_E4M3" else ("MXFP4", 32)
    if shape[-1] % group or scale.shape != (*shape[:-1], shape[-1] // group):
        raise CheckpointError(
            f"scales of shape {scale.shape} do not fit a weight of shape {shape} in groups of {group} columns"
        )
    outer_kinds = [kind for kind in ("outer_scale", "divisor") if parts.find(kind)]
    if dtype == "NVFP4" and not outer_kinds:
        raise CheckpointError("the checkpoint lacks its outer scale")
    for kind in outer_kinds:
        outer = parts.need(kind, FLOATS)
        one_a_matrix = len(shape) > 2 and outer.shape[:1] == shape[:1] and prod(outer.shape) == shape[0]
        if prod(outer.shape) != 1 and not one_a_matrix:
            raise CheckpointError(f"an outer scale of shape {outer.shape} does not fit a weight of shape {shape}")
    return parts.weight("float4", dtype, shape, {"group": group}, "scale", *outer_kinds)


def decode_float4(weight: "Stored", companions: "Mapping[str, Stored]", settings: Mapping[str, Any]) -> "torch.Tensor":
    """Return the numbers as float32, of shape (*scale.shape[:-1], groups * group).

    Args:
        weight: U8, of shape (..., cols / 2) or (..., groups, group / 2).
        companions: `scale` of shape (..., groups); perhaps `outer_scale` or `divisor` of one entry, or one a matrix.
        settings: `group`, the entries that share a scale.

    Raises:
        CheckpointError: there are not as many numbers as the scales cover.
    """
    import torch

    codes = weight.tensor().flatten()
    scales = scale_values(companions["scale"])
    group = settings["group"]
    if codes.numel() * 2 != scales.numel() * group:
        raise CheckpointError(
            f"{printable(weight.entry.name)}: {codes.numel() * 2} numbers, and scales for {scales.numel() * group}"
        )
    shape = (*scales.shape[:-1], scales.shape[-1] * group)
    for kind, apply in (("outer_scale", torch.Tensor.mul), ("divisor", torch.Tensor.div)):
        if kind in companions:
            outer = scale_values(companions[kind]).reshape(-1, 1)
            scales = apply(scales.reshape(len(outer), -1), outer)
    numbers = torch.tensor([*_MAGNITUDES, *(-magnitude for magnitude in _MAGNITUDES)])
    byte = torch.arange(256)
    pairs = torch.stack([numbers[byte & 0xF], numbers[byte >> 4]], dim=1)
    values = torch.empty(codes.numel(), 2)
    for start in range(0, codes.numel(), _CHUNK_BYTES):
        # Converted to 32 bits, because an index of dtype uint8 would be a mask.
        part = codes[start : start + _CHUNK_BYTES].to(torch.int32)
        torch.index_select(pairs, 0, part, out=values[start : start + _CHUNK_BYTES])
    values.view(-1, group).mul_(scales.reshape(-1, 1))
    return values.reshape(shape)
