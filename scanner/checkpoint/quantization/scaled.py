"""Weights stored as 8-bit numbers times scales, one scale per block, row, column or tensor: FP8 and I8.

    W[i, j] = (stored[i, j] - zero_point[I, J]) * scale[I, J] / denominator,  I = i // block_rows, J = j // block_cols

where the last block of a row or column may be shorter. Every convention in use is a case of this formula:

* `weight_scale_inv`, blocks of 128 x 128 (DeepSeek-V3 technical report, arXiv 2412.19437, section 3.3, and the
  `weight_dequant` kernel published with the model): despite the name it multiplies.
* `weight_scale` of compressed-tensors (int-quantized, float-quantized, mxfp8), of fbgemm and of ModelOpt: one scale per
  tensor, row or group of columns.
* LLM.int8 (arXiv 2208.07339; bitsandbytes stores the largest magnitude of a row as `SCB`): denominator 127.
"""

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from scanner.checkpoint.model import LogicalWeight
from scanner.checkpoint.names import printable
from scanner.checkpoint.quantization.config import declared_blocks
from scanner.checkpoint.quantization.parts import EXPONENTS, FLOATS, Parts
from scanner.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from scanner.checkpoint.quantization.stored import Stored

_CHUNK_ENTRIES = 2**22

_ROW_MAJOR = 0
"""Value of `weight_format` in bitsandbytes for a matrix that was not rearranged for a kernel."""


_USUAL_BLOCKS = (128, 128)


def describe_scaled(parts: Parts, settings: Mapping[str, Any]) -> LogicalWeight:
    """Describe an F8 or I8 weight with scales; see `Describe`."""
    shape, scale = parts.entry.shape, parts.need("scale", FLOATS | EXPONENTS)
    zero_point = parts.find("zero_point")
    if len(shape) < 2:
        raise CheckpointError(f"{len(shape)}-D: not a matrix")
    if zero_point is not None and prod(zero_point.shape) != prod(scale.shape):
        raise CheckpointError(f"zero points of shape {zero_point.shape} do not fit scales of shape {scale.shape}")
    rows, cols = _blocks(shape, scale.shape, declared_blocks(settings))
    return parts.weight(
        "scaled", parts.entry.dtype, shape, {"block_rows": rows, "block_cols": cols}, "scale", "zero_point"
    )


def describe_llm_int8(parts: Parts, settings: Mapping[str, Any]) -> LogicalWeight:
    """Describe an I8 weight of bitsandbytes; see `Describe`."""
    shape, scale = parts.entry.shape, parts.need("scale", FLOATS)
    if len(shape) != 2 or prod(scale.shape) != shape[0]:
        raise CheckpointError(f"scales of shape {scale.shape} do not fit a weight of shape {shape}")
    layout = parts.find("layout")
    if layout is not None and (layout.dtype, prod(layout.shape)) != ("U8", 1):
        raise CheckpointError(f"a layout {layout.dtype} of shape {layout.shape} is not bitsandbytes'")
    by_row = {"block_rows": 1, "block_cols": shape[1], "denominator": 127}
    return parts.weight("scaled", parts.entry.dtype, shape, by_row, "scale", "layout")


def _blocks(shape: tuple[int, ...], scales: tuple[int, ...], declared: tuple[int, int] | None) -> tuple[int, int]:
    """Return how many rows and columns share a scale; raise CheckpointError if the shapes do not match."""
    stack, (rows, cols) = shape[:-2], shape[-2:]
    if prod(scales) == 1 or scales in (stack, (*stack, 1)):
        return rows, cols
    grid = scales[len(stack) :] if scales[: len(stack)] == stack else ()
    if len(grid) == 1:
        grid = (grid[0], 1)
    readings = [(1, cols), (rows, 1)]
    if declared:
        readings.insert(0, declared)
    elif len(grid) == 2 and 0 not in grid:
        # Not in the config: prefer the usual size to an even division.
        readings += [_USUAL_BLOCKS, (max(rows // grid[0], 1), max(cols // grid[1], 1))]
    for block in readings:
        if grid == (-(-rows // block[0]), -(-cols // block[1])):
            return block
    blocks = f" in blocks of {declared[0]} x {declared[1]}" if declared else ""
    raise CheckpointError(f"scales of shape {scales} do not fit a weight of shape {shape}{blocks}")


def decode_scaled(weight: "Stored", companions: "Mapping[str, Stored]", settings: Mapping[str, Any]) -> "torch.Tensor":
    """Return stored * scale as float32, of the stored shape (rows, cols) or (stack, rows, cols).

    Args:
        weight: F8 or I8.
        companions: `scale`; perhaps `zero_point`, and `layout` of bitsandbytes.
        settings: `block_rows`, `block_cols`; perhaps `denominator`.

    Raises:
        CheckpointError: the scales do not cover the weight, or its entries were rearranged for a kernel.
    """
    import torch

    if "layout" in companions and int(companions["layout"].tensor()) != _ROW_MAJOR:
        raise CheckpointError(
            f"{printable(weight.entry.name)}: its entries were rearranged for a kernel; save it again with bitsandbytes"
        )
    values = weight.tensor().to(torch.float32).contiguous()
    rows, cols = values.shape[-2:]
    row_block = torch.arange(rows) // settings["block_rows"]
    col_block = torch.arange(cols) // settings["block_cols"]
    blocks = (int(row_block[-1]) + 1, int(col_block[-1]) + 1)
    matrices = values.reshape(-1, rows, cols)
    scales = _by_matrix(companions["scale"], len(matrices), blocks) / settings.get("denominator", 1)
    zero_points = _by_matrix(companions["zero_point"], len(matrices), blocks) if "zero_point" in companions else None
    step = max(1, _CHUNK_ENTRIES // cols)
    for position, matrix in enumerate(matrices):
        for start in range(0, rows, step):
            part, which = matrix[start : start + step], row_block[start : start + step]
            if zero_points is not None:
                part -= zero_points[position][which][:, col_block]
            part *= scales[position][which][:, col_block]
    return values


def scale_values(stored: "Stored") -> "torch.Tensor":
    """Return scales as float32, of their stored shape; bytes are exponents of two (E8M0, OCP MX specification 1.0, 5.4.1).

    Raises:
        CheckpointError: as `Stored.tensor`.
    """
    import torch

    values = stored.tensor()
    return (values.view(torch.float8_e8m0fnu) if values.dtype == torch.uint8 else values).to(torch.float32)


def _by_matrix(stored: "Stored", matrices: int, blocks: tuple[int, int]) -> "torch.Tensor":
    """Return values of shape (matrices, *blocks); a single value is repeated."""
    values = scale_values(stored)
    if values.numel() == blocks[0] * blocks[1]:
        return values.reshape(1, *blocks).expand(matrices, *blocks)
    if values.numel() != matrices * blocks[0] * blocks[1]:
        raise CheckpointError(
            f"{printable(stored.entry.name)}: {values.numel()} values for {matrices} x {blocks[0]} x {blocks[1]} blocks"
        )
    return values.reshape(matrices, *blocks)
