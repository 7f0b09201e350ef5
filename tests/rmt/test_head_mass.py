"""Masses of heads in vectors, against numpy, closed forms of two heads, and simulations of the null."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest

from scanner import analyze
from scanner.rmt.analysis import Heads
from scanner.rmt.head_mass import DRAWS, head_masses, p_values


def test_masses_are_sums_of_squares_and_add_up() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((5, 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = head_masses(torch.from_numpy(vectors), 3).numpy()
    for k in range(5):
        assert found[k] == pytest.approx([np.sum(vectors[k, 4 * h : 4 * h + 4] ** 2) for h in range(3)])
    assert found.sum(axis=1) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="12 entries are not 5 heads"):
        head_masses(torch.from_numpy(vectors), 5)


def test_with_two_heads_the_null_has_a_closed_form() -> None:
    """sum m^2 = 1 - 2 m (1 - m), m of a Beta distribution: P(sum m^2 >= t) = 2 P(m >= (1 + sqrt(2 t - 1)) / 2)."""
    t = np.array([0.5, 0.52, 0.6, 0.7, 0.9])
    exact = 2.0 * beta.sf(0.5 * (1.0 + np.sqrt(2.0 * t - 1.0)), 4.0, 4.0)
    assert p_values(t, 2, 8) == pytest.approx(exact, abs=4.0 * 0.5 / np.sqrt(DRAWS))


@pytest.mark.parametrize(("heads", "width"), [(12, 32), (9, 64), (3, 5)])
def test_p_is_uniform_for_random_vectors(heads: int, width: int) -> None:
    rng = np.random.default_rng([heads, width])
    masses = head_masses(torch.from_numpy(rng.standard_normal((3000, heads * width))), heads)
    p = p_values(masses.square().sum(dim=1).numpy(), heads, width)
    assert kstest(p, "uniform").pvalue > 0.001
    assert abs(np.mean(p < 0.01) - 0.01) < 0.007


def test_extremes() -> None:
    assert p_values([1.0], 12, 32)[0] == pytest.approx(1.0 / (1 + DRAWS))
    assert p_values([1.0 / 12.0], 12, 32)[0] == 1.0
    assert np.isnan(p_values([1.0], 1, 32)).all()


def test_an_analysis_tests_the_side_that_has_heads() -> None:
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((60, 80))
    matrix[:, :10] *= 6.0  # one of eight heads of the columns
    found = analyze(matrix, heads=Heads(side="v", count=8), head_mass=True)
    v = np.linalg.svd(matrix)[2][:60]
    masses = (v**2).reshape(60, 8, 10).sum(axis=2)
    assert found.heads_side == "v"
    assert found.heads_effective == pytest.approx(1.0 / np.sum(masses**2, axis=1), rel=1e-6)
    assert list(found.heads_top) == list(masses.argmax(axis=1))
    assert found.heads_p is not None
    assert found.heads_top is not None
    assert max(found.heads_p[:5]) < 1e-4
    assert list(found.heads_top[:5]) == [0] * 5
    plain = analyze(rng.standard_normal((60, 80)), heads=Heads(side="v", count=8), head_mass=True)
    assert plain.heads_p_mean == pytest.approx(0.5, abs=0.15)
    assert analyze(matrix).heads_p is None


def test_under_the_scale_null_larger_heads_have_more_mass() -> None:
    """Heads of unequal scale: p is small, and p_scale is uniform; mass in two heads beyond their scale is found by both."""
    rng = np.random.default_rng(4)
    scale = np.repeat(np.geomspace(1.0, 3.0, 8), 24)
    draws = [
        analyze(rng.standard_normal((192, 160)) * scale[:, None], heads=Heads(side="u", count=8), head_mass=True)
        for _ in range(6)
    ]
    p, p_scale = (np.concatenate([getattr(one, name) for one in draws]) for name in ("heads_p", "heads_p_scale"))
    assert np.mean(p < 0.01) > 0.3
    assert kstest(p_scale, "uniform").pvalue > 0.001
    assert np.mean(p_scale < 0.01) < 0.025
    planted = rng.standard_normal((192, 160)) * scale[:, None]
    u = np.zeros(192)
    u[:48] = rng.standard_normal(48)
    planted += 80.0 * np.outer(u / np.linalg.norm(u), rng.standard_normal(160) / np.sqrt(160))
    found = analyze(planted, heads=Heads(side="u", count=8), head_mass=True)
    assert found.heads_p_scale is not None
    assert found.heads_p_scale[0] < 1e-4
