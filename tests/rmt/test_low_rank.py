"""Products of thin factors: the same numbers as for the product, without computing it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner import analyze
from scanner.rmt.decomposition import LowRank, decompose_low_rank


def _factors(rows: int, cols: int, rank: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, rank, generator=generator), torch.randn(rank, cols, generator=generator)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 50), cols=st.integers(1, 50), rank=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_svd_is_that_of_the_product(rows: int, cols: int, rank: int, seed: int) -> None:
    left, right = _factors(rows, cols, rank, seed)
    product = left.double().numpy() @ right.double().numpy()
    found = decompose_low_rank(LowRank(left=left, right=right))
    count = min(rows, cols, rank)
    truth = np.linalg.svd(product, compute_uv=False)
    assert found.singular_values.numpy() == pytest.approx(truth[:count], rel=1e-10, abs=1e-10 * truth[0])
    rebuilt = (found.left.T * found.singular_values @ found.right).numpy()
    assert np.abs(rebuilt - product).max() < 1e-11 * max(1.0, truth[0])


def test_the_analysis_is_that_of_the_product_up_to_its_rank() -> None:
    left, right = _factors(60, 90, 8)
    thin = analyze(LowRank(left=left, right=right))
    full = analyze(left.double() @ right.double())
    assert (thin.rows, thin.cols, thin.rank) == (60, 90, 8) == (full.rows, full.cols, full.rank)
    assert thin.singular_values == pytest.approx(full.singular_values[:8], rel=1e-10)
    assert thin.u_p == pytest.approx(full.u_p[:8], abs=1e-3)
    for name in ("sigma_std", "frobenius_norm", "stable_rank", "effective_rank", "outliers_right"):
        assert getattr(thin, name) == pytest.approx(getattr(full, name), rel=1e-9), name
    assert set(thin.region) == {"right"}  # beside zeros everything stands out
    assert thin.svd_method == "low_rank"


def test_nan_in_a_factor_is_refused() -> None:
    left, right = _factors(5, 6, 2)
    left[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        decompose_low_rank(LowRank(left=left, right=right))
    with pytest.raises(ValueError, match="1 NaN"):
        analyze(LowRank(left=left, right=right))
