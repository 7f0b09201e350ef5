"""Statistics of entries, compared with scipy and numpy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scanner.rmt.entries import entry_statistics


@settings(max_examples=60)
@given(
    count=st.integers(1, 6), length=st.integers(1, 700), seed=st.integers(0, 2**32), power=st.sampled_from([1, 3, 9])
)
def test_agrees_with_scipy_and_numpy(count: int, length: int, seed: int, power: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((count, length)) ** power
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = entry_statistics(torch.from_numpy(vectors))
    expected = [stats.kstest(v * np.sqrt(length), "norm").statistic for v in vectors]
    assert found.ks.numpy() == pytest.approx(expected, abs=1e-6)
    assert found.ipr.numpy() == pytest.approx((vectors**4).sum(axis=1), rel=1e-5)
    assert found.peak.numpy() == pytest.approx(np.abs(vectors).max(axis=1), rel=1e-6)


def test_many_blocks_give_what_one_gives() -> None:
    vectors = np.random.default_rng(0).standard_normal((300, 5000))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whole = entry_statistics(torch.from_numpy(vectors)).ks
    assert whole.tolist() == [float(entry_statistics(torch.from_numpy(v[None])).ks) for v in vectors]


def test_the_input_is_left_alone() -> None:
    vectors = torch.randn(3, 50)
    before = vectors.clone()
    entry_statistics(vectors)
    assert torch.equal(vectors, before)


@pytest.mark.parametrize("shape", [(5,), (2, 0), (1, 2, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(r, n\)"):
        entry_statistics(torch.zeros(shape))
