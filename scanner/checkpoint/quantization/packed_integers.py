"""Weights stored as integers of 2 to 8 bits packed into 32-bit words: GPTQ, AWQ and compressed-tensors.

    W[i, j] = (code[i, j] - zero_point[i, group of j]) * scale[i, group of j]

i counts out_features and j in_features; every decoder returns W in this orientation. The conventions are those of the
packages that write the checkpoints:

* GPTQ (arXiv 2210.17323; AutoGPTQ and GPTQModel): `qweight` (in * bits / 32, out) is packed along in_features, `qzeros`
  (groups, out * bits / 32) along out_features, lowest bits first, values of 3 bits running on from word to word;
  `scales` (groups, out). Version 1 stores every zero point less one (modulo 2**bits), `gptq_v2` as it is.
  `g_idx` (in,) names the group of every in_feature where they were reordered (desc_act).
* AWQ (arXiv 2306.00978; AutoAWQ, version gemm): `qweight` (in, out / 8) and `qzeros` (groups, out / 8) are packed along
  out_features, and the eight 4-bit values of a word are those of columns 0 2 4 6 1 3 5 7.
* compressed-tensors pack-quantized: `weight_packed` (out, in * bits / 32) and `weight_zero_point` (out * bits / 32, groups)
  hold signed values with 2**(bits - 1) added; its package unpacks them.
"""

import importlib.util
from collections.abc import Mapping
from math import gcd, prod
from typing import TYPE_CHECKING, Any

from scanner.checkpoint.model import LogicalWeight
from scanner.checkpoint.names import printable
from scanner.checkpoint.quantization.config import IntegerScheme, declared_int, declared_text, integer_schemes
from scanner.checkpoint.quantization.parts import FLOATS, Parts
from scanner.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from scanner.checkpoint.quantization.stored import Stored

AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Position of each of eight adjacent columns in a word of AWQ."""

NEEDS_EXTRA = "compressed-tensors: needs the extra: pip install 'rmtscan[quant]'"

_CHUNK_ENTRIES = 2**22


def describe_qweight(parts: Parts, settings: Mapping[str, Any]) -> LogicalWeight:
    """Describe a weight of GPTQ or AWQ, distinguished by the direction of packing; see `Describe`."""
    words, scale, zeros = parts.entry, parts.need("scale", FLOATS), parts.need("zero_point", frozenset({"I32"}))
    shapes = f"weights {words.shape}, scales {scale.shape}, zero points {zeros.shape}"
    if words.dtype != "I32" or not len(words.shape) == len(scale.shape) == len(zeros.shape) == 2:
        raise CheckpointError(f"neither GPTQ nor AWQ: {words.dtype}, {shapes}")
    if 0 in words.shape + scale.shape + zeros.shape or zeros.shape[0] != scale.shape[0]:
        raise CheckpointError(f"shapes that do not fit each other: {shapes}")
    groups, rows = scale.shape
    method = "awq" if words.shape[1] * 8 == rows and zeros.shape[1] == words.shape[1] else "gptq"
    bits, remainder = (4, 0) if method == "awq" else divmod(zeros.shape[1] * 32, rows)
    if remainder or bits not in (2, 3, 4, 8) or (method == "gptq" and words.shape[1] != rows):
        raise CheckpointError(f"shapes that do not fit each other: {shapes}")
    if method == "gptq" and words.shape[0] % (bits // gcd(bits, 32)):
        raise CheckpointError(f"{words.shape[0]} words hold no whole number of values of {bits} bits")
    cols = words.shape[0] if method == "awq" else words.shape[0] * 32 // bits
    declared = declared_text(settings, "quant_method")
    if declared not in (None, method):
        raise CheckpointError(f"config.json declares {printable(declared)}, and the shapes are those of {method}")
    group_size = _group_size(settings, bits, cols, groups)
    found = {"bits": bits, "group_size": group_size, **_version(settings, method)}
    index = parts.find("group_index")
    if index is not None and index.shape != (0,) and (index.shape != (cols,) or index.dtype not in ("I32", "I64")):
        raise CheckpointError(f"group indices {index.dtype} of shape {index.shape} for {cols} in_features")
    kinds = ["scale", "zero_point"]
    if index is not None and index.shape != (0,):
        kinds.append("group_index")
    return parts.weight(method, f"{method.upper()}-int{bits}", (rows, cols), found, *kinds)


def _group_size(settings: Mapping[str, Any], bits: int, cols: int, groups: int) -> int:
    """Return how many in_features share a scale, by the config, or by the shapes if the config does not say."""
    # GPTQModel lists exceptions for single modules under `dynamic`: then the config may not hold for this one.
    declared = {} if settings.get("dynamic") else settings
    declared_bits = declared_int(declared, "bits", "w_bit")
    if declared_bits not in (None, bits):
        raise CheckpointError(f"config.json declares {declared_bits} bits, and the shapes say {bits}")
    size = declared_int(declared, "group_size", "q_group_size")
    if size is None:
        if cols % groups:
            raise CheckpointError(f"{cols} in_features make no {groups} groups of one size, and no config says which")
        return cols // groups
    if size == -1:
        size = cols
    if size < 1 or -(-cols // size) != groups:
        raise CheckpointError(
            f"config.json declares groups of {size}, which {groups} scales for {cols} in_features are not"
        )
    return size


def _version(settings: Mapping[str, Any], method: str) -> dict[str, int]:
    """Return the settings that depend on the version of the format."""
    if method == "awq":
        version = declared_text(settings, "version", "format") or "gemm"
        if version != "gemm":
            raise CheckpointError(f"AWQ version {printable(version)} is not read, only gemm")
        if settings.get("zero_point", True) is not True:
            raise CheckpointError("AWQ without zero points is not read")
        return {}
    version = declared_text(settings, "checkpoint_format", "format") or "gptq"
    if version not in ("gptq", "gptq_v2"):
        raise CheckpointError(f"GPTQ format {printable(version)} is not read, only gptq and gptq_v2")
    return {"zero_offset": int(version == "gptq")}


def describe_packed_integers(parts: Parts, settings: Mapping[str, Any]) -> LogicalWeight:
    """Describe an integer weight that compressed-tensors packed; see `Describe`."""
    words, scale = parts.entry, parts.need("scale", FLOATS)
    if len(words.shape) != 2:
        raise CheckpointError(f"compressed-tensors: {len(words.shape)}-D packed weights are not read")
    schemes = integer_schemes(settings)
    if not schemes:
        raise CheckpointError(
            "compressed-tensors: config.json has no config_groups that say how many bits a weight has"
        )
    fitting = [scheme for scheme in schemes if _packed_cols(parts, scheme) is not None]
    if len(fitting) != 1:
        fit = "none" if not fitting else "more than one"
        raise CheckpointError(
            f"compressed-tensors: {fit} of the config_groups fits {words.shape}, scales {scale.shape}"
        )
    cols = _packed_cols(parts, fitting[0])
    assert cols is not None
    if importlib.util.find_spec("compressed_tensors") is None:
        raise CheckpointError(NEEDS_EXTRA)
    bits = fitting[0].bits
    found = {"bits": bits, "cols": cols, "group_size": fitting[0].group_size or cols}
    kinds = ("scale", "zero_point", "shape", "group_index")
    return parts.weight("packed_integers", f"CT-int{bits}", (words.shape[0], cols), found, *kinds)


def _packed_cols(parts: Parts, scheme: IntegerScheme) -> int | None:
    """Return the in_features of a packed weight if all its parts match this scheme, else None."""
    rows, words = parts.entry.shape
    scale, zeros = parts.need("scale", FLOATS).shape, parts.find("zero_point")
    index, shape = parts.find("group_index"), parts.find("shape")
    if scheme.group_size is None:
        # Only `weight_shape` says how much of the last word belongs to the row; the decoder compares it.
        cols, groups = words * 32 // scheme.bits, 1
        fits = scale in ((rows, 1), (rows,)) or (prod(scale) == 1 and scheme.symmetric)
    else:
        groups = scale[-1] if scale else 0
        cols = groups * scheme.group_size
        fits = scale == (rows, groups) and -(-cols * scheme.bits // 32) == words
    if scheme.symmetric != (zeros is None):
        return None
    fits &= zeros is None or (zeros.dtype == "I32" and zeros.shape == (-(-rows * scheme.bits // 32), groups))
    fits &= index is None or (index.dtype in ("I32", "I64") and index.shape == (cols,))
    fits &= shape is None or (shape.dtype in ("I32", "I64") and shape.shape == (2,))
    return cols if fits and cols else None


def decode_gptq(weight: "Stored", companions: "Mapping[str, Stored]", settings: Mapping[str, Any]) -> "torch.Tensor":
    """Return the matrix (out, in) as float32.

    Args:
        weight: `qweight`, I32.
        companions: `scale`, `zero_point`; perhaps `group_index`.
        settings: `bits` (2, 3, 4 or 8), `group_size`, `zero_offset` (1 for version 1, 0 for version 2).

    Raises:
        CheckpointError: a group index that is none.
    """
    import torch

    bits = settings["bits"]
    codes = unpack_bits(weight.tensor(), bits).T
    zero_points = unpack_bits(companions["zero_point"].tensor().T, bits).to(torch.int32) + settings["zero_offset"]
    scales = companions["scale"].tensor().T.to(torch.float32)
    groups = _groups(codes.shape[1], scales.shape[1], companions.get("group_index"), settings["group_size"])
    return _affine(codes, zero_points & (2**bits - 1), scales, groups)


def decode_awq(weight: "Stored", companions: "Mapping[str, Stored]", settings: Mapping[str, Any]) -> "torch.Tensor":
    """Return the matrix (out, in) as float32.

    Args:
        weight: `qweight`, I32.
        companions: `scale`, `zero_point`.
        settings: `group_size`.
    """
    import torch

    words = (weight.tensor().T, companions["zero_point"].tensor().T)
    codes, zero_points = (
        unpack_bits(packed, 4).reshape(-1, 8, packed.shape[1])[:, list(AWQ_NIBBLES)].flatten(0, 1) for packed in words
    )
    scales = companions["scale"].tensor().T.to(torch.float32)
    groups = _groups(codes.shape[1], scales.shape[1], None, settings["group_size"])
    return _affine(codes, zero_points, scales, groups)


def decode_packed_integers(
    weight: "Stored", companions: "Mapping[str, Stored]", settings: Mapping[str, Any]
) -> "torch.Tensor":
    """Return the matrix (out, in) of compressed-tensors pack-quantized as float32.

    Args:
        weight: `weight_packed`, I32.
        companions: `scale`; perhaps `zero_point`, `group_index`, and `shape`, which is checked.
        settings: `bits` (1 to 8), `cols` (in_features), `group_size`.

    Raises:
        CheckpointError: the package is missing, `shape` says another shape, or a group index that is none.
    """
    import torch

    try:
        from compressed_tensors.compressors import unpack_from_int32
    except ImportError as error:
        raise CheckpointError(f"{printable(weight.entry.name)}: {NEEDS_EXTRA}") from error
    bits = settings["bits"]
    packed = weight.tensor()
    shape = torch.Size((packed.shape[0], settings["cols"]))
    if "shape" in companions and companions["shape"].tensor().tolist() != list(shape):
        raise CheckpointError(
            f"{printable(companions['shape'].entry.name)} says {companions['shape'].tensor().tolist()} "
            f"of a weight that is packed as {list(shape)}"
        )
    codes = unpack_from_int32(packed, bits, shape)
    count = -(-shape[1] // settings["group_size"])
    # One scale per group, per row, or for the tensor.
    scales = companions["scale"].tensor().to(torch.float32).reshape(-1, count).expand(shape[0], -1)
    zero_points = torch.zeros(1, 1, dtype=torch.int8).expand(scales.shape)
    if "zero_point" in companions:
        zero_points = unpack_from_int32(companions["zero_point"].tensor(), bits, scales.shape, packed_dim=0)
    groups = _groups(shape[1], count, companions.get("group_index"), settings["group_size"])
    return _affine(codes, zero_points, scales, groups)


def unpack_bits(words: "torch.Tensor", bits: int) -> "torch.Tensor":
    """Return the values that are packed one after another, lowest bits first, in the words of each column.

    Args:
        words: shape (count, columns), int32; `count` words hold a whole number of values.
        bits: 1 to 8.

    Returns:
        uint8 of shape (count * 32 / bits, columns).
    """
    import torch

    # The pattern repeats after this many words, or this many values.
    period = bits // gcd(bits, 32)
    values = 32 // gcd(bits, 32)
    words = words.reshape(-1, period, words.shape[1])
    found = torch.empty(words.shape[0], values, words.shape[2], dtype=torch.uint8)
    for position in range(values):
        word, shift = divmod(position * bits, 32)
        value = words[:, word] >> shift
        if 32 - shift < bits:
            # The rest is in the next word; shifting a negative word to the right fills with ones.
            value = value & ((1 << (32 - shift)) - 1) | words[:, word + 1] << (32 - shift)
        found[:, position] = value & ((1 << bits) - 1)
    return found.flatten(0, 1)


def _groups(cols: int, count: int, index: "Stored | None", group_size: int) -> "torch.Tensor":
    """Return the group of every column, shape (cols,), int64."""
    import torch

    if index is None:
        return torch.arange(cols) // group_size
    groups = index.tensor().to(torch.int64)
    if groups.min() < 0 or groups.max() >= count:
        raise CheckpointError(
            f"{printable(index.entry.name)} names groups from {groups.min()} to {groups.max()}, "
            f"and there are {count}: the file is damaged"
        )
    return groups


def _affine(
    codes: "torch.Tensor", zero_points: "torch.Tensor", scales: "torch.Tensor", groups: "torch.Tensor"
) -> "torch.Tensor":
    """Return (codes - zero_points) * scales in float32; (rows, cols) from (rows, cols), (rows, groups), (rows, groups)."""
    import torch

    rows, cols = codes.shape
    values = torch.empty(rows, cols)
    step = max(1, _CHUNK_ENTRIES // cols)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        values[part] = codes[part]
        values[part] -= zero_points[part][:, groups]
        values[part] *= scales[part][:, groups]
    return values
