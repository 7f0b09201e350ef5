"""The law, compared with numbers from the literature, numerical integration and sampled matrices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from scanner.rmt import marchenko_pastur as mp


@pytest.mark.parametrize(("gamma", "mu"), [(1.0, 0.65278), (0.5, 0.83047), (0.25, 0.91600), (4096 / 14336, 0.90389)])
def test_median_has_the_published_values(gamma: float, mu: float) -> None:
    assert mp.median(gamma) == pytest.approx(mu, abs=6e-6)


def test_edges_of_the_shapes_in_the_papers() -> None:
    assert mp.singular_value_edges(1 / np.sqrt(768), 768, 768) == pytest.approx((0.0, 2.0))
    assert mp.singular_value_edges(1 / np.sqrt(3072), 3072, 768) == pytest.approx((0.5, 1.5))
    assert mp.singular_value_edges(1 / np.sqrt(3072), 128, 3072) == pytest.approx((0.796, 1.204), abs=5e-4)


# Between 0.98 and 1 the integrand has an edge so near zero that quad itself is not good to 1e-6; 1 is there by itself.
@given(gamma=st.one_of(st.floats(0.01, 0.98), st.just(1.0)), share=st.floats(0.001, 0.999))
def test_cdf_is_the_integral_of_the_pdf(gamma: float, share: float) -> None:
    lower, upper = mp.edges(gamma)
    x = lower + share * (upper - lower)
    # x = s^2 takes the pole at zero (gamma = 1) out of the integrand.
    expected, _ = quad(
        lambda s: float(mp.singular_value_pdf(s, gamma)), np.sqrt(lower), np.sqrt(x), limit=400, epsabs=1e-10
    )
    assert float(mp.cdf(x, gamma)) == pytest.approx(expected, abs=1e-6)


@given(gamma=st.floats(0.001, 1.0))
def test_cdf_ends_at_zero_and_one_and_median_halves_it(gamma: float) -> None:
    lower, upper = mp.edges(gamma)
    assert mp.cdf([lower - 1, lower, upper, upper + 1], gamma).tolist() == [0.0, 0.0, 1.0, 1.0]
    assert float(mp.cdf(mp.median(gamma), gamma)) == pytest.approx(0.5, abs=1e-9)


def test_pdf_is_zero_outside_the_edges() -> None:
    assert mp.pdf([-1.0, 0.0, 0.2, 2.3], 0.25).tolist() == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(("rows", "cols"), [(600, 600), (800, 200)])
def test_a_random_matrix_follows_the_law(rows: int, cols: int) -> None:
    rng = np.random.default_rng(3)
    s = np.linalg.svd(rng.standard_normal((rows, cols)), compute_uv=False)
    law = mp.cdf(np.sort(s**2) / max(rows, cols), min(rows, cols) / max(rows, cols))
    steps = np.arange(1, len(s) + 1) / len(s)
    # Eigenvalues are rigid: they stray by a few ranks, not by sqrt(n) of them.
    assert np.max(np.abs(law - steps)) < 3 / len(s)


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.5, float("nan")])
def test_an_impossible_aspect_ratio_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match="aspect ratio"):
        mp.edges(gamma)
