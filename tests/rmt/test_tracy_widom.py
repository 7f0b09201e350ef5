"""The Tracy-Widom distribution against Painleve II and published quantiles, and the units in which eigenvalues follow it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import airy

from scanner.rmt import tracy_widom


def painleve(points: list[float]) -> list[float]:
    """P(TW1 <= s), from q'' = s q + 2 q^3, q ~ Ai: F1 = exp(-(int (x - s) q^2 + int q)/2). Source: Tracy and Widom, 1996."""
    start = 6.0
    ai, slope = airy(start)[:2]
    tail = solve_ivp(
        lambda x, y: [(x - start) * airy(x)[0] ** 2, airy(x)[0], airy(x)[0] ** 2],
        (start, 30.0),
        [0.0] * 3,
        rtol=1e-11,
        atol=1e-20,
    )
    first = [ai, slope, *(float(value) for value in tail.y[:, -1])]

    def derivative(s: float, y: np.ndarray) -> list[float]:
        q, dq, _, _, square = y
        # d/ds int_s (x - s) q^2 = -int_s q^2
        return [dq, s * q + 2.0 * q**3, -square, -q, -(q**2)]

    found = solve_ivp(derivative, (start, -6.0), first, rtol=1e-12, atol=1e-15, dense_output=True, method="DOP853")
    return [float(np.exp(-0.5 * (found.sol(s)[2] + found.sol(s)[3]))) for s in points]


def test_the_determinant_agrees_with_painleve() -> None:
    points = [-5.0, -3.5, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    for s, expected in zip(points, painleve(points), strict=True):
        assert 1.0 - tracy_widom.survival(s) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(("p", "s"), [(0.5, -1.26865), (0.95, 0.97929), (0.99, 2.02343)])
def test_quantiles_are_the_published_ones(p: float, s: float) -> None:
    assert tracy_widom.quantile(p) == pytest.approx(s, abs=1e-4)


def test_small_probabilities_have_the_asymptotic_tail() -> None:
    for s in (5.0, 20.0, 80.0):  # int_s Ai / 2, with errors of its square
        first = np.exp(-2.0 / 3.0 * s**1.5) / (4.0 * np.sqrt(np.pi) * s**0.75)
        assert tracy_widom.survival(s) == pytest.approx(first, rel=0.8 / s**1.5)
    assert tracy_widom.survival(1e9) == 0.0
    assert tracy_widom.survival(-40.0) == 1.0
    assert tracy_widom.survival(float("inf")) == 0.0


def test_p_falls_and_stays_between_0_and_1() -> None:
    p = [tracy_widom.survival(s) for s in np.linspace(-12.0, 30.0, 200)]
    assert np.all(np.diff(p) <= 1e-14)
    assert max(p) <= 1.0
    assert min(p) >= 0.0


def test_the_mean_does_not_depend_on_which_dimension_is_larger() -> None:
    assert tracy_widom.wishart_scale(30, 80) == tracy_widom.wishart_scale(80, 30)
    center, width = tracy_widom.wishart_scale(80, 30)
    assert center == pytest.approx((np.sqrt(79.0) + np.sqrt(30.0)) ** 2)
    assert width == pytest.approx((np.sqrt(79) + np.sqrt(30)) * (1 / np.sqrt(79) + 1 / np.sqrt(30)) ** (1 / 3))
