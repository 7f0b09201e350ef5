"""Writes GGUF files for the tests: sound ones with the gguf package, hostile ones byte by byte."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES
from numpy.typing import NDArray

GGUF = "model.gguf"

U32, STRING, ARRAY = 4, 8, 9


def write_gguf(
    path: Path,
    tensors: Mapping[str, NDArray[Any] | tuple[NDArray[np.uint8], str]],
    metadata: Mapping[str, Any] | None = None,
    architecture: str = "llama",
    alignment: int | None = None,
) -> Path:
    """Write arrays as they are, and (blocks, type) pairs: uint8 rows of whole blocks of a quantized type."""
    path.parent.mkdir(exist_ok=True, parents=True)
    writer = GGUFWriter(path, architecture)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for key, value in (metadata or {}).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[0], raw_dtype=GGMLQuantizationType[tensor[1]])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(shape: tuple[int, ...], kind: str, seed: int = 0) -> tuple[NDArray[np.uint8], str]:
    """Random blocks whose numbers are finite: float16 scales are moderate."""
    entries, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (*shape[:-1], shape[-1] // entries, size), dtype=np.uint8)
    # The high byte of a half-precision number below 0x7C is finite; every odd byte may be one.
    raw[..., 1::2] &= 0x3B
    if kind == "MXFP4":
        raw[..., 0] = random.integers(100, 140, raw.shape[:-1])  # a power of two
    return raw.reshape(*shape[:-1], -1), kind


def decoded(tensor: tuple[NDArray[np.uint8], str]) -> NDArray[np.float32]:
    return np.asarray(quants.dequantize(tensor[0], GGMLQuantizationType[tensor[1]]), dtype=np.float32)


def llama(layers: int = 1, *, heads: int = 4, kv_heads: int = 2, width: int = 64, ffn: int = 96) -> dict[str, Any]:
    """The matrices of a small Llama, all of them Q8_0."""
    shapes = {
        "attn_q": (width, width),
        "attn_k": (width // heads * kv_heads, width),
        "attn_v": (width // heads * kv_heads, width),
        "attn_output": (width, width),
        "ffn_gate": (ffn, width),
        "ffn_up": (ffn, width),
        "ffn_down": (width, ffn),
    }
    tensors: dict[str, Any] = {"token_embd.weight": blocks((50, width), "Q8_0", 99)}
    for layer in range(layers):
        for at, (name, shape) in enumerate(shapes.items()):
            tensors[f"blk.{layer}.{name}.weight"] = blocks(shape, "Q8_0", 10 * layer + at)
        tensors[f"blk.{layer}.attn_norm.weight"] = np.ones(width, dtype=np.float32)
    return tensors


LLAMA = {
    "llama.block_count": 1,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
}


# ---- byte by byte


def text(content: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(content) if length is None else length) + content


def item(key: bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def array(kind: int, length: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, length) + payload


def tensor(
    name: bytes = b"w",
    dimensions: tuple[int, ...] = (4, 2),
    kind: int = 0,
    offset: int = 0,
    *,
    count: int | None = None,
) -> bytes:
    described = struct.pack("<I", len(dimensions) if count is None else count)
    described += b"".join(struct.pack("<Q", extent) for extent in dimensions)
    return text(name) + described + struct.pack("<IQ", kind, offset)


def gguf_bytes(
    items: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = bytes(64),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    item_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    items = [item(b"general.architecture", STRING, text(b"llama"))] if items is None else items
    tensors = [tensor()] if tensors is None else tensors
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(items) if item_count is None else item_count,
    )
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join([*items, *tensors])
    return header + bytes(-len(header) % alignment) + data
