"""Run by a test, in a process of its own: a scan on a Ray that believes in a GPU, whose memory is full.

    python -m tests.engine.full_gpu CHECKPOINT FOLDER

The workers import this module, too: as an extension, which makes every decomposition on the GPU fail. Writes the stores FOLDER/gpu
and FOLDER/cpu, which is computed without the GPU, and FOLDER/notes.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray
import torch

from scanner.engine import PoolOptions
from scanner.engine import computing as module
from scanner.engine.scan import scan

from .observer import Recorder

_decomposed = module.decomposed  # type: ignore[attr-defined]


def decomposed(*arguments: Any) -> Any:
    """Decompose a matrix, unless this process holds a GPU."""
    if ray.get_gpu_ids():
        raise torch.OutOfMemoryError("CUDA out of memory")
    return _decomposed(*arguments)


setattr(module, "decomposed", decomposed)  # noqa: B010 (the types differ)


class Notes(Recorder):
    """Keeps the notes."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def main(checkpoint: str, folder: str) -> None:
    """Scan twice."""
    os.environ["RMTSCAN_EXTENSIONS"] = "tests.engine.full_gpu"
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    notes = Notes()
    scan(checkpoint, store=f"{folder}/gpu", observer=notes, pool=PoolOptions(gpus_per_worker=1), ensembles=())
    scan(checkpoint, store=f"{folder}/cpu", pool=PoolOptions(gpus_per_worker=0), ensembles=())
    Path(folder, "notes.json").write_text(json.dumps(notes.notes))
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
