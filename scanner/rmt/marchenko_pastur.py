"""The Marchenko-Pastur law: distribution of the singular values of a matrix with independent entries.

All functions refer to the *unit* law, the law of x = s^2 / (hi sigma^2), the squared singular values of a lo x hi matrix
with entries of variance sigma^2, divided by their scale. Its only parameter is the aspect ratio gamma = lo / hi,
0 < gamma <= 1. `singular_value_edges` converts the edges to singular values.

Source: Marchenko and Pastur, Math. USSR Sb. 1, 457 (1967); in this form Staats, Thamm, Rosenow, arXiv 2410.17770, Eq. 1.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

FloatArray = NDArray[np.float64]


def _check(gamma: float) -> None:
    if not 0.0 < gamma <= 1.0:
        raise ValueError(f"the aspect ratio gamma is min(rows, cols) / max(rows, cols), in (0, 1]; got {gamma}")


def edges(gamma: float) -> tuple[float, float]:
    """Return the edges of the unit law, (1 - sqrt gamma)^2 and (1 + sqrt gamma)^2.

    Raises:
        ValueError: gamma outside (0, 1].
    """
    _check(gamma)
    root = np.sqrt(gamma)
    return float((1.0 - root) ** 2), float((1.0 + root) ** 2)


def pdf(x: ArrayLike, gamma: float) -> FloatArray:
    """Return the density of the unit law at squared singular values x (any shape, in units of hi sigma^2); same shape."""
    lower, upper = edges(gamma)
    x = np.asarray(x, dtype=np.float64)
    inside = (x > lower) & (x < upper) & (x > 0.0)
    at = np.where(inside, x, 1.0)
    density = np.sqrt(np.clip((upper - at) * (at - lower), 0.0, None)) / (2.0 * np.pi * gamma * at)
    return np.where(inside, density, 0.0)


def singular_value_pdf(s: ArrayLike, gamma: float) -> FloatArray:
    """Return the density of singular values s (any shape, in units of sigma sqrt(hi)); same shape."""
    s = np.asarray(s, dtype=np.float64)
    return 2.0 * s * pdf(s**2, gamma)


def cdf(x: ArrayLike, gamma: float) -> FloatArray:
    """Return the distribution function of the unit law at x (any shape, in units of hi sigma^2), in closed form; same shape.

    With r = sqrt((b - x) / (x - a)), a and b the edges: F(x) = 1/2 + [sqrt((b - x)(x - a))
    - (1 + gamma) arctan((r^2 - 1) / 2r) + (1 - gamma) arctan((a r^2 - b) / (2 (1 - gamma) r))] / (2 pi gamma).
    """
    lower, upper = edges(gamma)
    x = np.asarray(x, dtype=np.float64)
    above = np.clip(x - lower, 0.0, None)
    below = np.clip(upper - x, 0.0, None)
    inside = (above > 0.0) & (below > 0.0)
    above, below = np.where(inside, above, 1.0), np.where(inside, below, 1.0)
    r = np.sqrt(below / above)
    value = np.sqrt(below * above) - (1.0 + gamma) * np.arctan((r**2 - 1.0) / (2.0 * r))
    if gamma < 1.0:
        value += (1.0 - gamma) * np.arctan((lower * r**2 - upper) / (2.0 * (1.0 - gamma) * r))
    inner = 0.5 + value / (2.0 * np.pi * gamma)
    return np.where(inside, np.clip(inner, 0.0, 1.0), np.where(x >= upper, 1.0, 0.0))


@lru_cache(maxsize=4096)
def median(gamma: float) -> float:
    """Return the median mu_gamma of the unit law: 0.65278 at gamma = 1, 0.83047 at 1/2, 0.91600 at 1/4."""
    lower, upper = edges(gamma)
    return float(brentq(lambda x: float(cdf(x, gamma)) - 0.5, lower, upper, xtol=1e-14, rtol=1e-14))


def singular_value_edges(sigma: float, rows: float, cols: float) -> tuple[float, float]:
    """Return the edges of the bulk, nu_min, nu_max = sigma (sqrt(hi) -/+ sqrt(lo)), of a rows x cols matrix.

    For a square matrix nu_min is 0, so that no singular value is below the bulk.
    """
    lo, hi = min(rows, cols), max(rows, cols)
    return float(sigma * (np.sqrt(hi) - np.sqrt(lo))), float(sigma * (np.sqrt(hi) + np.sqrt(lo)))
