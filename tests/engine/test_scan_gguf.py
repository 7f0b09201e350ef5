"""A real Llama, scanned directly from its GGUF file."""

from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest

from scanner import Method, PoolOptions, Selection, open_checkpoint, open_store, scan
from scanner.checkpoint import list_matrices


def test_every_block_has_its_seven_roles(smollm2: Path) -> None:
    matrices = list_matrices(open_checkpoint(str(smollm2), identify=False)).matrices
    roles = ("query", "key", "value", "attn_out", "mlp_gate", "mlp_up", "mlp_down")
    assert Counter((ref.layer, ref.role) for ref in matrices) == Counter(
        (layer, r) for layer in range(30) for r in roles
    )


@pytest.mark.usefixtures("local_ray")
def test_singular_values_are_those_of_the_dequantised_weights(smollm2: Path, tmp_path: Path) -> None:
    method = Method(selection=Selection(layers=(3,)))
    report = scan(smollm2, store=tmp_path, method=method, ensembles=(), pool=PoolOptions(workers=2))
    assert (report.models[0].analyzed, report.failed) == (7, 0)
    store = open_store(str(tmp_path))
    for tensor in gguf.GGUFReader(smollm2).tensors:
        if tensor.name.startswith("blk.3.") and len(tensor.shape) == 2:
            truth = np.linalg.svd(gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64), compute_uv=False)
            rows = store.sql("SELECT singular_value FROM vectors WHERE tensor = ? ORDER BY k", [tensor.name])
            assert rows["singular_value"].to_numpy() == pytest.approx(truth, rel=1e-9), tensor.name
