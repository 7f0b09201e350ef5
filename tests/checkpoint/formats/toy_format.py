"""A file format of its own in one module, as an extension would define it.

A `.toy` file: a line of JSON (tensor name -> dtype and shape), then the tensors one after another. `F32` is plain, `TOY8`
has one byte per entry: (byte - 128) / 16.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from scanner.checkpoint import Format, TensorEntry, register_format
from scanner.checkpoint.names import printable
from scanner.checkpoint.quantization.stored import Stored
from scanner.checkpoint.sources.files import Files
from scanner.errors import CheckpointError

MAX_HEADER_BYTES = 2**20
ITEM_BYTES = {"F32": 4, "TOY8": 1}


def decode_toy(weight: Stored, companions: Mapping[str, Stored], settings: Mapping[str, Any]) -> torch.Tensor:
    return ((torch.from_numpy(weight.content).float() - 128) / 16).reshape(weight.entry.shape)


class Toy(Format):
    name = "toy"
    title = ".toy"
    suffixes = (".toy",)
    codecs = {"TOY8": "toy8"}  # noqa: RUF012
    decoders = {"toy8": decode_toy}  # noqa: RUF012

    def read_file(self, files: Files, name: str) -> list[TensorEntry]:
        line, newline, _ = files.read(name, 0, MAX_HEADER_BYTES).partition(b"\n")
        try:
            header = json.loads(line)
        except ValueError as error:
            raise CheckpointError(f"{printable(name)} is not a .toy file ({error}): download it again") from error
        entries, start = [], len(line) + len(newline)
        for tensor, (dtype, *shape) in header.items():
            size = math.prod(shape) * ITEM_BYTES[dtype]
            entries.append(TensorEntry(name=tensor, dtype=dtype, shape=tuple(shape), file=name, start=start, size=size))
            start += size
        if start != files.size(name):
            raise CheckpointError(f"{printable(name)} has {files.size(name)} bytes instead of {start}")
        return entries


def write_toy(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write bytes (uint8) as TOY8 and all other tensors as F32."""
    dtypes = {name: "TOY8" if tensor.dtype == torch.uint8 else "F32" for name, tensor in tensors.items()}
    header = {name: [dtypes[name], *tensor.shape] for name, tensor in tensors.items()}
    content = b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(header).encode() + b"\n" + content)


register_format(Toy())
