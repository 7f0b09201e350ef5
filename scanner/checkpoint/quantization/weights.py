"""The weights of a checkpoint: every stored tensor is a weight, a part of a weight, or skipped with a reason."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from types import MappingProxyType
from typing import Any

from scanner.checkpoint.model import LogicalWeight, Skipped, TensorEntry
from scanner.checkpoint.names import module_of, printable
from scanner.checkpoint.quantization.config import quantization_settings
from scanner.checkpoint.quantization.factored import factored_weights
from scanner.checkpoint.quantization.low_rank import low_rank_weights, without_base_layer
from scanner.checkpoint.quantization.modules import foreign_modules
from scanner.checkpoint.quantization.names import FLOAT8, WHAT_TO_DO, find_parts, is_lone_part
from scanner.checkpoint.quantization.parts import PART_NAMES, Parts
from scanner.checkpoint.quantization.reparametrized import reparametrized_weights
from scanner.checkpoint.quantization.stored import DTYPE_BITS, TORCH_DTYPES
from scanner.errors import CheckpointError

_READ_METHODS = frozenset(
    {
        "awq",
        "bitsandbytes",
        "compressed-tensors",
        "compressed_tensors",
        "fbgemm_fp8",
        "fp8",
        "gguf",
        "gptq",
        "modelopt",
        "mxfp4",
    }
)
"""The values of `quant_method` whose tensors are supported. Tensors of other methods may look alike and differ in meaning."""

_SCALED_METHODS = frozenset({"compressed-tensors", "compressed_tensors", "fbgemm_fp8", "fp8", "modelopt"})
"""The methods that never store FP8 without scales."""

_NO_CODECS: Mapping[str, str] = MappingProxyType({})

# Deeper than any model: limits the work for an untrusted name.
_MAX_DEPTH = 32


def logical_weights(
    tensors: Sequence[TensorEntry], config: Mapping[str, Any], codecs: Mapping[str, str] = _NO_CODECS
) -> tuple[tuple[LogicalWeight, ...], tuple[Skipped, ...]]:
    """Return the weights of a checkpoint, and the stored tensors that are not the main tensor of a weight.

    Every stored tensor is accounted for once: as the `entry` of a weight, or as skipped with the reason. Scales, zero
    points and other companions are skipped as parts of their weight. The factors of adapters and of factored layers become
    products, and the tensors of weight norm the weight that is computed from them. A weight whose parts are missing or
    contradict each other is skipped. Every returned weight can be decoded to floating-point numbers and may have any number
    of dimensions. Only headers and config are used.

    Args:
        tensors: the tensors of one checkpoint, with distinct names.
        config: its config.json; what it says about quantization may be wrong.
        codecs: stored dtype -> codec, for the dtypes that the file format encodes in its own way.
    """
    by_name = {entry.name: entry for entry in tensors}
    settings = quantization_settings(config)
    refused = _foreign(tensors, settings)
    skipped = dict(refused)
    found: dict[str, LogicalWeight] = {}
    for combine in (reparametrized_weights, factored_weights, low_rank_weights):
        rest = [entry for entry in tensors if entry.name not in found and entry.name not in skipped]
        weights, reasons = combine(rest, config, tensors)
        found |= {weight.entry.name: weight for weight in weights}
        skipped |= reasons
    composed = {*found, *skipped}
    # Find all companions first: they are not weights, whatever their names.
    groups = [parts for entry in tensors if entry.name not in composed and (parts := find_parts(entry, by_name))]
    companions = {entry.name for parts in groups for _, entry in parts.companions}
    taken = set(by_name) | {weight.name for weight in found.values()}
    for parts in groups:
        if parts.entry.name in companions:
            continue
        try:
            weight = _described(parts, settings, taken)
        except CheckpointError as error:
            skipped[parts.entry.name] = str(error)
            outcome = ", which is not decoded"
        else:
            found[parts.entry.name] = weight
            taken.add(weight.name)
            outcome = ""
        for kind, companion in parts.companions:
            skipped.setdefault(companion.name, f"{PART_NAMES[kind]} of {printable(parts.name)}{outcome}")
    for entry in tensors:
        if entry.name in found or entry.name in skipped:
            continue
        reason = _unreadable(entry, by_name, settings, codecs)
        if reason is not None:
            skipped[entry.name] = reason
        else:
            found[entry.name] = LogicalWeight(
                name=entry.name,
                shape=entry.shape,
                dtype=entry.dtype,
                entry=entry,
                codec=codecs.get(entry.dtype, ""),
            )
    foreign = foreign_modules(tensors, found, companions | {parts.entry.name for parts in groups}, composed, codecs)
    skipped |= {name: reason for name, reason in foreign.items() if name not in refused}
    for name in foreign.keys() & found.keys():
        weight = found.pop(name)
        skipped |= {entry.name: foreign[name] for entry in (weight.entry, *(part for _, part in weight.companions))}
    for name, weight in found.items():
        if (moved := without_base_layer(weight, taken)) != weight.name:
            found[name] = replace(weight, name=moved)
            taken.add(moved)
    return (
        tuple(found[entry.name] for entry in tensors if entry.name in found),
        tuple(Skipped(tensor=entry.name, reason=skipped[entry.name]) for entry in tensors if entry.name in skipped),
    )


def narrow(weight: LogicalWeight, index: int) -> LogicalWeight:
    """Return one matrix of a stack: position `index` of the first dimension, with the bytes of that matrix only.

    A stack is stored matrix after matrix, and so are its companions, except those with a single entry, which all matrices
    share. The result has the name of the stack.

    Args:
        weight: a weight of three or more dimensions from `logical_weights`.
        index: from 0 up to `weight.shape[0]`.

    Raises:
        CheckpointError: the bytes of a tensor do not divide evenly among the matrices.
        ValueError: `weight` is not a stack, or has no such matrix.
    """
    if len(weight.shape) < 3 or not 0 <= index < weight.shape[0]:
        raise ValueError(f"no matrix {index} in a weight of shape {weight.shape}")
    count = weight.shape[0]
    return replace(
        weight,
        shape=weight.shape[1:],
        entry=_slice(weight.entry, index, count),
        companions=tuple(
            (kind, entry if _shared(entry, count) else _slice(entry, index, count)) for kind, entry in weight.companions
        ),
    )


def _shared(entry: TensorEntry, count: int) -> bool:
    return prod(entry.shape) == 1 and entry.shape[:1] != (count,)


def _slice(entry: TensorEntry, index: int, count: int) -> TensorEntry:
    if entry.shape[:1] != (count,) or entry.size % count or entry.column_major:
        raise CheckpointError(
            f"{printable(entry.name)}: {entry.size} bytes of shape {entry.shape} make no {count} matrices"
        )
    size = entry.size // count
    return replace(entry, shape=entry.shape[1:], start=entry.start + index * size, size=size)


def _described(parts: Parts, settings: Mapping[str, Any], taken: set[str]) -> LogicalWeight:
    if 0 in parts.entry.shape:
        raise CheckpointError(f"{' x '.join(map(str, parts.entry.shape))}: no entries")
    if parts.name != parts.entry.name and parts.name in taken:
        raise CheckpointError(f"there is another tensor called {printable(parts.name)}")
    return parts.describe(parts, settings)


def _unreadable(
    entry: TensorEntry, by_name: Mapping[str, TensorEntry], settings: Mapping[str, Any], codecs: Mapping[str, str]
) -> str | None:
    """Return why a tensor that is not part of a quantized weight cannot be read as a weight, or None if it can."""
    if is_lone_part(entry.name, by_name):
        return "part of a quantized weight whose other parts are missing"
    if entry.dtype in FLOAT8 and _method(settings) in _SCALED_METHODS and len(entry.shape) > 1:
        return f"{entry.dtype}: the checkpoint lacks its scales"
    if entry.dtype in TORCH_DTYPES or entry.dtype in codecs:
        return None
    if entry.dtype == "I8":
        return "I8: integers without scales"
    if entry.dtype in DTYPE_BITS and not entry.dtype.startswith("F"):
        return f"{entry.dtype}: not floating point"
    return f"{printable(entry.dtype)}: not readable by this version"


def _foreign(tensors: Sequence[TensorEntry], settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the tensors of modules that were quantized with an unsupported method, each with the reason."""
    method = _method(settings)
    if method is None or method in _READ_METHODS:
        return {}
    reason = f"quantized by {printable(method)}, which is not decoded: {WHAT_TO_DO}"
    codes = [entry for entry in tensors if entry.dtype not in TORCH_DTYPES or entry.dtype in FLOAT8]
    # Positions and masks are integers too, in modules that are not quantized.
    modules = {module_of(entry.name) for entry in codes if entry.dtype not in ("I64", "BOOL")} - {""}
    return {entry.name: reason for entry in tensors if any(outer in modules for outer in _modules(entry.name))}


def _method(settings: Mapping[str, Any]) -> str | None:
    method = settings.get("quant_method")
    return method.lower() if isinstance(method, str) else None


def _modules(name: str) -> list[str]:
    """Return the module of a tensor and the modules that contain it."""
    components = name.split(".", _MAX_DEPTH)
    return [module_of(name), *(".".join(components[:depth]) for depth in range(1, len(components)))]
