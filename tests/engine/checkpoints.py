"""Small checkpoints for tests of the engine and the command line, and their rows in a fixed order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from scanner.store import Store, open_store
from tests.checkpoint.writing import checkpoint

#: Columns that describe the run, not the matrix.
OF_THE_RUN = (
    *("seconds", "device", "started_at", "finished_at", "environment"),
    *("read_seconds", "decompose_seconds", "test_seconds"),
    "files",  # their checksums cover the seconds
)

ROLES = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "mlp_up": "mlp.up_proj", "mlp_down": "mlp.down_proj"}


def weight(rows: int, cols: int, seed: int) -> torch.Tensor:
    """Noise with a few outlying directions, float32."""
    rng = np.random.default_rng([rows, cols, seed])
    spikes = rng.standard_normal((rows, 3)) @ rng.standard_normal((3, cols)) / np.sqrt(min(rows, cols))
    return torch.from_numpy(((rng.standard_normal((rows, cols)) + spikes) / np.sqrt(cols)).astype(np.float32))


def tensors(layers: int = 3, hidden: int = 24, seed: int = 0) -> dict[str, torch.Tensor]:
    """A Llama without attention output and gate: four matrices per layer (two shapes and their transposes) and a norm."""
    made = {}
    for layer in range(layers):
        block = f"model.layers.{layer}"
        shapes = {"query": (1, 1), "key": (1, 1), "mlp_up": (2, 1), "mlp_down": (1, 2)}
        for number, (role, (rows, cols)) in enumerate(shapes.items()):
            name = f"{block}.{ROLES[role]}.weight"
            made[name] = weight(rows * hidden, cols * hidden, 1000 * seed + 10 * layer + number)
        made[f"{block}.input_layernorm.weight"] = torch.ones(hidden)
    return made


def small(folder: Path, **shape: int) -> str:
    """A checkpoint of `tensors`."""
    return checkpoint(folder, tensors(**shape), {"architectures": ["LlamaForCausalLM"]})


def slow(folder: Path, matrices: int = 40, size: int = 600) -> str:
    """A checkpoint whose scan takes several seconds, so that it can be killed in between."""
    named = {f"model.layers.{i}.self_attn.q_proj.weight": weight(size, size, i) for i in range(matrices)}
    return checkpoint(folder, named, {"architectures": ["LlamaForCausalLM"]})


def rows(store: Store, table: str) -> list[dict[str, object]]:
    """All rows of a table, sorted, without columns that differ between two runs of the same scan."""
    found = store.sql(f"SELECT * FROM {table}").drop_columns(
        [name for name in OF_THE_RUN if name in columns(store, table)]
    )
    return sorted(found.to_pylist(), key=lambda row: [str(value) for value in row.values()])


def columns(store: Store, table: str) -> list[str]:
    """The names of the columns of a table."""
    return list(store.sql(f"SELECT * FROM {table} LIMIT 0").column_names)


def results(store: Store) -> dict[str, list[dict[str, object]]]:
    """All rows of scans and controls in a store; equal for equal scans."""
    return {table: rows(store, table) for table in ("scans", "matrices", "vectors", "failures", "controls")}


def spectrum(vectors: pa.Table, tensor: str) -> np.ndarray:
    """The singular values of one tensor, largest first."""
    of_tensor = vectors.filter(pa.compute.equal(vectors["tensor"], tensor)).sort_by("k")
    return of_tensor["singular_value"].to_numpy()


def staged(folder: Path) -> int:
    """Number of finished matrices of the unfinished scans of a store, which may not exist yet."""
    if not (folder / "staging").is_dir():
        return 0
    return sum(unfinished.parts for unfinished in open_store(str(folder)).unfinished())
