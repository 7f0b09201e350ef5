"""More BLAS threads change the results of a large matrix by rounding only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from threadpoolctl import threadpool_info, threadpool_limits

from scanner.engine.plan import spreads
from scanner.rmt.analysis import Analysis, analyze

SIZE = 2048


def analyzed(matrix: torch.Tensor, threads: int) -> Analysis:
    with threadpool_limits(limits=threads):
        used = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
        if used != {threads}:
            pytest.skip(f"BLAS has {used} threads here when asked for {threads}")
        return analyze(matrix)


def test_one_and_two_threads_agree(minilm: Path) -> None:
    """No sample has a matrix of this size: the entries are those of an embedding, row after row."""
    with safe_open(minilm / "model.safetensors", "pt") as file:
        name = next(name for name in file.keys() if name.endswith("word_embeddings.weight"))  # noqa: SIM118
        entries = file.get_tensor(name).flatten()
    matrix = entries[: SIZE * SIZE].reshape(SIZE, SIZE)
    assert spreads(*matrix.shape), "a matrix that gets more threads"
    one, two = analyzed(matrix, 1), analyzed(matrix, 2)
    np.testing.assert_allclose(two.singular_values, one.singular_values, rtol=1e-9)
    for side in ("u", "v"):
        ours, theirs = (getattr(found, f"{side}_ks") for found in (one, two))
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6)
    assert (one.rank, one.outliers_left, one.outliers_right) == (two.rank, two.outliers_left, two.outliers_right)
