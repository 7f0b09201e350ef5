"""The law of a product of two random factors, against simulated products and closed forms."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest

from scanner import analyze
from scanner.rmt import product_law
from scanner.rmt.decomposition import Product

SHAPES = [(384, 384, 32), (576, 300, 64), (64, 500, 64), (200, 200, 20), (120, 120, 120)]


def factors(rows: int, cols: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([rows, cols, width, seed])
    return 0.3 * rng.standard_normal((rows, width)), 2.0 * rng.standard_normal((width, cols))


@pytest.mark.parametrize(("rows", "cols", "width"), SHAPES)
def test_simulated_products_follow_the_law(rows: int, cols: int, width: int) -> None:
    draws = [factors(rows, cols, width, seed) for seed in range(8)]
    s = np.array([np.linalg.svd(left @ right, compute_uv=False)[:width] for left, right in draws]) / 0.6
    x = s.ravel() ** 2 / (rows * cols)
    lower, upper = product_law.edges(width / rows, width / cols)
    assert kstest(x, lambda at: product_law.cdf(at, width / rows, width / cols)).statistic < 0.05
    assert x.max() == pytest.approx(upper, rel=0.1)
    assert np.sqrt(x.min()) == pytest.approx(np.sqrt(lower), abs=0.06)


def test_edges_moments_and_mass_have_closed_forms() -> None:
    assert product_law.edges(1.0, 1.0) == pytest.approx((0.0, 27 / 4))  # Fuss and Catalan
    assert product_law.edges(0.1, 0.1) == pytest.approx(
        (0.3375, 2.16)
    )  # 2 psi^2 c + c psi = 1 has the roots 2 and -2.5
    for c, d in ((0.1, 0.1), (0.2, 0.6), (0.5, 1.0)):
        # E tr (A B B^T A^T) and the free convolution of two Marchenko-Pastur laws of ratios c and d
        assert [_moment(power, c, d) for power in range(3)] == pytest.approx([1.0, 1.0, 1.0 + c + d], rel=2e-4)


def _moment(power: int, c: float, d: float) -> float:
    lower, upper = product_law.edges(c, d)
    return float(quad(lambda t: 2.0 * t ** (2 * power + 1) * product_law.pdf(t * t, c, d), lower**0.5, upper**0.5)[0])


def test_an_analysis_of_random_factors_has_no_outliers_and_one_of_a_planted_direction_has_one() -> None:
    left, right = factors(300, 240, 24, 0)
    found = analyze(Product(left=torch.from_numpy(left), right=torch.from_numpy(right)))
    assert (found.svd_method, found.sigma_kind, found.rank) == ("product", "median", 24)
    assert (found.outliers_left, found.outliers_right) == (0, 0)
    assert found.sigma == pytest.approx(0.6 * np.sqrt(24), rel=0.05)
    assert found.sigma_std == pytest.approx((left @ right).std(), rel=1e-9)
    assert np.isnan(found.sigma_init)
    assert found.mp_ks < 0.2
    assert "product" in str(found.scale_failure)
    assert found.u_p_scale is None
    spiked = left.copy()
    spiked[:, 0] *= 4.0
    assert analyze(Product(left=torch.from_numpy(spiked), right=torch.from_numpy(right))).outliers_right == 1


def test_the_basis_between_the_factors_changes_nothing() -> None:
    left, right = factors(90, 80, 8, 1)
    between = np.random.default_rng(2).standard_normal((8, 8)) + 3 * np.eye(8)
    one = analyze(Product(left=torch.from_numpy(left), right=torch.from_numpy(right)))
    other = analyze(
        Product(left=torch.from_numpy(left @ between), right=torch.from_numpy(np.linalg.solve(between, right)))
    )
    assert other.singular_values == pytest.approx(one.singular_values, rel=1e-10)
    assert other.u_p == pytest.approx(one.u_p, abs=1e-4)
    assert (other.sigma, other.mp_lower, other.mp_upper) == pytest.approx(
        (one.sigma, one.mp_lower, one.mp_upper), rel=1e-9
    )
    dense = np.linalg.svd(left @ right)
    assert one.singular_values == pytest.approx(dense.S[:8], rel=1e-10)


@pytest.mark.parametrize("width", [1, 5])
def test_zero_and_rank_one_products_have_values_and_no_nan_p(width: int) -> None:
    zero = analyze(Product(left=torch.zeros(9, width), right=torch.ones(width, 7)))
    assert zero.rank == 0
    assert set(zero.region) == {"null"}
    one = analyze(Product(left=torch.randn(9, 1), right=torch.randn(1, 7)))
    assert one.rank == 1
    assert not np.isnan(one.u_p[0])


def test_ratios_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="inner dimension"):
        product_law.edges(1.5, 0.5)
