"""Which stored tensors belong together: the naming conventions of the packages that write quantized weights."""

from collections.abc import Iterator, Mapping
from typing import Any

from scanner.checkpoint.model import LogicalWeight, TensorEntry
from scanner.checkpoint.quantization.float4 import describe_float4_blocks, describe_float4_packed
from scanner.checkpoint.quantization.packed_integers import describe_packed_integers, describe_qweight
from scanner.checkpoint.quantization.parts import Describe, Parts
from scanner.checkpoint.quantization.scaled import describe_llm_int8, describe_scaled
from scanner.errors import CheckpointError

FLOAT8 = frozenset({"F8_E4M3", "F8_E5M2"})

WHAT_TO_DO = "dequantize it with the package that made it, save that, and scan the result"

# Endings that only parts of quantized weights have.
_ENDINGS = (
    "_scale_inv",
    ".weight_scale",
    ".weight_scale_2",
    ".weight_zero_point",
    ".weight_g_idx",
    ".weight_shape",
    ".weight_global_scale",
    ".weight_packed",
    ".SCB",
    ".qweight",
    ".qzeros",
    ".weight.absmax",
    ".weight.nested_absmax",
    ".weight.quant_map",
    ".weight.nested_quant_map",
)
_BITSANDBYTES = (
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "quant_state.bitsandbytes__nf4",
    "quant_state.bitsandbytes__fp4",
)

Names = dict[str, tuple[str, ...]]


def find_parts(entry: TensorEntry, tensors: Mapping[str, TensorEntry]) -> Parts | None:
    """Return the quantized weight whose main tensor is `entry`, or None if there is none by its name and dtype.

    Args:
        entry: a tensor of the checkpoint.
        tensors: all tensors of the checkpoint, by name.
    """
    found = next(_candidates(entry, tensors), None)
    if found is None:
        return None
    name, describe, names = found
    companions = ((kind, tensors[other]) for kind, others in names.items() for other in others if other in tensors)
    return Parts(name=name, entry=entry, companions=tuple(companions), describe=describe)


def is_lone_part(name: str, tensors: Mapping[str, TensorEntry]) -> bool:
    """Tell whether a tensor is a part of a quantized weight whose main tensor was not found."""
    module, _, last = name.rpartition(".")
    siblings = ("qweight", "qzeros", "g_idx")
    return name.endswith(_ENDINGS) or (
        last == "scales" and any(f"{module}.{sibling}" in tensors for sibling in siblings)
    )


def _candidates(entry: TensorEntry, tensors: Mapping[str, TensorEntry]) -> Iterator[tuple[str, Describe, Names]]:
    """Yield the weights that `entry` may be the main tensor of: name, description, and names of companions by kind."""
    name, dtype = entry.name, entry.dtype
    module, _, last = name.rpartition(".")
    if name.endswith(("_blocks", ".blocks")) and dtype == "U8" and len(entry.shape) > 2:
        yield name[:-7], describe_float4_blocks, {"scale": (f"{name[:-6]}scales",)}
    if last == "qweight":
        yield (
            f"{module}.weight",
            describe_qweight,
            _in(module, scale="scales", zero_point="qzeros", group_index="g_idx"),
        )
    if last.endswith("_packed") and dtype in ("I32", "U8"):
        stem = name.removesuffix("_packed")
        names = {
            "scale": (f"{stem}_scale",),
            "zero_point": (f"{stem}_zero_point",),
            "shape": (f"{stem}_shape",),
            "group_index": (f"{stem}_g_idx",),
            "divisor": (f"{stem}_global_scale",),
            "other": (f"{module}.scale_packed", f"{module}.meta"),
        }
        yield stem, describe_packed_integers if dtype == "I32" else describe_float4_packed, names
    if last == "compressed" and f"{module}.bitmask" in tensors:
        yield (
            module,
            _refuse_sparse,
            {"other": tuple(f"{module}.{part}" for part in ("bitmask", "shape", "row_offsets"))},
        )
    if last == "weight" and f"{name}.absmax" in tensors:
        yield name, _refuse_bitsandbytes, {"other": tuple(f"{name}.{part}" for part in _BITSANDBYTES)}
    if last == "weight" and dtype == "U32" and f"{module}.scales" in tensors:
        yield name, _refuse_mlx, _in(module, scale="scales", other="biases")
    if dtype == "U8" and f"{name}_scale_2" in tensors:
        yield name, describe_float4_packed, {"scale": (f"{name}_scale",), "outer_scale": (f"{name}_scale_2",)}
    if dtype == "I8" and last == "weight" and f"{module}.SCB" in tensors:
        yield name, describe_llm_int8, _in(module, scale="SCB", layout="weight_format")
    if dtype == "I8" or dtype in FLOAT8:
        scales = [f"{name}_scale_inv", f"{name}_scale"]
        if last == "weight":
            scales += [f"{module}.{other}" for other in ("scale", "scale_weight", "qscale_weight")]
        if any(scale in tensors for scale in scales):
            yield name, describe_scaled, {"scale": tuple(scales), "zero_point": (f"{name}_zero_point",)}


def _in(module: str, **names: str) -> Names:
    return {kind: (f"{module}.{name}",) for kind, name in names.items()}


def _refuse_sparse(parts: Parts, settings: Mapping[str, Any]) -> LogicalWeight:
    raise CheckpointError(f"sparse weights of compressed-tensors: {WHAT_TO_DO}")


def _refuse_bitsandbytes(parts: Parts, settings: Mapping[str, Any]) -> LogicalWeight:
    raise CheckpointError(
        "4 bits of bitsandbytes: load it with transformers, call dequantize() and save_pretrained(), and scan that"
    )


def _refuse_mlx(parts: Parts, settings: Mapping[str, Any]) -> LogicalWeight:
    raise CheckpointError("quantized by MLX: run `mlx_lm.convert --dequantize` and scan the result")
