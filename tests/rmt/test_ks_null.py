"""The null of D: the shipped table, compared with simulations and published quantiles; p-values, with their definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scanner.rmt import ks_null
from scanner.rmt.ks_null import KsNull, simulate


def _direct_null(length: int, draws: int, seed: int) -> np.ndarray:
    """D by scipy, vector by vector."""
    vectors = np.random.default_rng(seed).standard_normal((draws, length))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.array([stats.kstest(v * np.sqrt(length), "norm").statistic for v in vectors])


@pytest.mark.parametrize(
    ("length", "quantiles"),
    [(256, (0.779, 1.183, 1.31, 1.585)), (768, (0.783, 1.182, 1.320, 1.585)), (4096, (0.785, 1.198, 1.337, 1.612))],
)
def test_shipped_table_has_the_known_quantiles(length: int, quantiles: tuple[float, ...]) -> None:
    for survival, root_n_d in zip((0.5, 0.1, 0.05, 0.01), quantiles, strict=True):
        p = KsNull().p_values(root_n_d / np.sqrt(length), length)
        # +-0.02 in the quantile is the noise of the published numbers.
        low, high = KsNull().p_values(np.array([root_n_d + 0.02, root_n_d - 0.02]) / np.sqrt(length), length)
        assert low <= survival <= high, (length, survival, p)


@pytest.mark.parametrize("length", [2, 3, 7, 10, 40, 96, 384, 768, 1536, 3000, 6000])
def test_table_interpolates_to_less_than_the_noise_of_a_simulation(length: int) -> None:
    draws = 20_000 if length <= 1000 else 4_000
    p = KsNull().p_values(simulate(length, draws, seed=99), length)
    # Under the null p is uniform: the distance to the diagonal is itself a KS statistic. 1.95/sqrt(N) is its 0.1 % quantile.
    assert stats.kstest(p, "uniform").statistic < 1.95 / np.sqrt(draws)


def test_simulation_agrees_with_scipy_vector_by_vector() -> None:
    ours, theirs = simulate(50, 4000, seed=1), _direct_null(50, 4000, seed=2)
    assert stats.ks_2samp(ours, theirs).pvalue > 0.001


def test_textbook_kolmogorov_p_values_would_be_too_large() -> None:
    d = simulate(768, 5000, seed=5)
    assert stats.kstwo.sf(d, 768).mean() > 0.53
    assert KsNull().p_values(d, 768).mean() == pytest.approx(0.5, abs=0.015)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20))
def test_simulated_p_is_its_definition(ks: list[float]) -> None:
    null = simulate(12, 500)
    found = KsNull.parse("mc:500").p_values(ks, 12)
    d = np.asarray(ks).astype(np.float32)
    assert found.tolist() == [(1 + int((null >= x).sum())) / 501 for x in d]


@given(st.integers(2, 20_000), st.lists(st.floats(0.0, 1.0), min_size=2, max_size=30))
def test_table_p_falls_with_d_and_stays_within_its_resolution(length: int, ks: list[float]) -> None:
    assert (np.diff(KsNull().p_values(np.sort(ks), length)) <= 0).all()
    p = KsNull(continued=False).p_values(np.sort(ks), length)
    draws = ks_null.shipped_table().draws
    assert (np.diff(p) <= 0).all()
    assert p.min() >= 1 / (1 + draws) * (1 - 1e-9)
    assert p.max() <= 1.0


def test_shipped_table_was_made_from_a_million_draws_a_length() -> None:
    table = ks_null.shipped_table()
    assert table.draws >= 1_000_000
    assert table.lengths.min() <= 8
    assert table.lengths.max() >= 4096
    assert (np.diff(table.quantiles, axis=1) >= 0).all()


def test_a_single_entry_has_no_p_value() -> None:
    assert np.isnan(KsNull().p_values([0.84, 0.2], 1)).all()


def test_null_is_written_as_it_is_read() -> None:
    assert str(KsNull.parse("table")) == "table"
    assert str(KsNull.parse("mc:1000")) == "mc:1000"


@pytest.mark.parametrize("text", ["", "mc", "mc:", "mc:0", "mc:-5", "mc:1e5", "tables", "kstwo"])
def test_an_unknown_null_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="unknown null"):
        KsNull.parse(text)


def test_a_new_table_row_matches_the_shipped_one() -> None:
    table = ks_null.shipped_table()
    new = ks_null.make_table(20_000, (128,), seed=3)
    shipped = table.quantiles[list(table.lengths).index(128)]
    for survival in (0.9, 0.5, 0.1):
        ours = np.interp(-survival, -new.survival, new.quantiles[0])
        assert ours == pytest.approx(np.interp(-survival, -table.survival, shipped), abs=0.015)
