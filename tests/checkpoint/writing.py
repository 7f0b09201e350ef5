"""Writes checkpoints for the tests: sound ones with the safetensors package, hostile ones byte by byte."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from scanner.checkpoint import Inventory, MatrixRef

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def file_bytes(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def info(dtype: str = "F32", shape: tuple[int, ...] = (1, 1), start: int = 0, end: int = 4) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def raw_checkpoint(folder: Path, header: Any, data: bytes = b"", name: str = WEIGHTS) -> str:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(file_bytes(header, data))
    return str(folder)


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> str:
    folder.mkdir(exist_ok=True, parents=True)
    save_file(tensors, folder / WEIGHTS)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def sharded(folder: Path, shards: dict[str, dict[str, torch.Tensor]], weight_map: dict[str, Any] | None = None) -> str:
    folder.mkdir(exist_ok=True, parents=True)
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    if weight_map is None:
        weight_map = {tensor: file for file, tensors in shards.items() for tensor in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return str(folder)


def matrix(inventory: Inventory, tensor: str) -> MatrixRef:
    return next(ref for ref in inventory.matrices if ref.tensor == tensor)


def reasons(inventory: Inventory) -> dict[str, str]:
    return {skipped.tensor: skipped.reason for skipped in inventory.skipped}
