"""The law of a product of two random factors: the reference for products of attention projections, W_q^T W_k and W_o W_v.

W = A B with A (m, r) and B (r, n), independent entries of variance alpha^2 and beta^2, r <= min(m, n). The r nonzero squared
singular values are the eigenvalues of the product of two Wishart matrices, whose law is the free multiplicative convolution of
two Marchenko-Pastur laws. In the unit x = s^2 / (m n alpha^2 beta^2), with c = r/m and d = r/n, psi(z) = sum of the moments
E[x^i] z^i at z = 1/x solves

    x psi = (1 + psi) (1 + c psi) (1 + d psi)

(the S-transform of a Wishart factor is 1/(1 + c psi)), a cubic equation. The density is -Im(1 + psi)/(pi x), and the edges are
the values of x(psi) where dx/dpsi = 0. W itself is what the factors mean: (G^T A^T)^T (G^-1 B) is the same matrix for every
invertible G, so that its scale is taken from its own spectrum. sigma is the standard deviation of an entry of W,
alpha beta sqrt(r); then m n alpha^2 beta^2 = sigma^2 m n / r.

Sources: Voiculescu, J. Operator Theory 18, 223 (1987); Burda, Jarosz, Livan, Nowak and Swiech, Phys. Rev. E 82, 061114 (2010).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from scanner.rmt.marchenko_pastur import FloatArray

#: Points of the tabulated distribution function, denser at the edges.
_POINTS = 4001


def _check(c: float, d: float) -> None:
    if not (0.0 < c <= 1.0 and 0.0 < d <= 1.0):
        raise ValueError(
            f"the inner dimension must be at least 1 and at most the outer ones, got ratios {c:g} and {d:g}"
        )


def edges(c: float, d: float) -> tuple[float, float]:
    """Return the edges of the law in units of m n alpha^2 beta^2, for c = r/m and d = r/n.

    Raises:
        ValueError: c or d outside (0, 1].
    """
    _check(c, d)

    def at(psi: float) -> float:
        return (1.0 + psi) * (1.0 + c * psi) * (1.0 + d * psi) / psi

    # dx/dpsi = 0: 2 c d psi^3 + (c + d + c d) psi^2 - 1 = 0. One root is positive; of the two negative ones that is an edge which
    # lies between -1 and -1/max(c, d).
    roots = np.roots([2.0 * c * d, c + d + c * d, 0.0, -1.0])
    real = np.sort(roots.real[np.abs(roots.imag) < 1e-6 * np.abs(roots).max()])
    upper = at(float(real[-1]))
    first = 1.0 / max(c, d)
    inner = [float(psi) for psi in real[:-1] if -first - 1e-9 <= psi <= -1.0 + 1e-9]
    lower = max(0.0, at(inner[-1])) if inner and first > 1.0 + 1e-12 else 0.0
    return lower, upper


def pdf(x: ArrayLike, c: float, d: float) -> FloatArray:
    """Return the density of the r nonzero values at x (any shape, in units of m n alpha^2 beta^2); same shape."""
    lower, upper = edges(c, d)
    x = np.asarray(x, dtype=np.float64)
    inside = (x > lower) & (x < upper)
    at = np.where(inside, x, 0.5 * (lower + upper))
    # c d psi^3 + (c + d + c d) psi^2 + (1 + c + d - x) psi + 1 = 0; inside the support two roots are complex conjugates.
    a, b, e = c * d, c + d + c * d, 1.0 + c + d - at
    shift = b / (3.0 * a)
    p = e / a - b * b / (3.0 * a * a)
    q = 2.0 * shift**3 - shift * e / a + 1.0 / a
    root = np.sqrt(np.maximum(0.25 * q * q + (p / 3.0) ** 3, 0.0))
    # The larger of the two cube roots is free of cancellation; their product is -p/3.
    first = np.cbrt(-0.5 * q - np.copysign(root, q))
    second = np.where(first != 0.0, -p / (3.0 * np.where(first != 0.0, first, 1.0)), 0.0)
    imaginary = 0.5 * np.sqrt(3.0) * np.abs(first - second)
    return np.where(inside, imaginary / (np.pi * at), 0.0)


@lru_cache(maxsize=64)
def _table(c: float, d: float) -> tuple[FloatArray, FloatArray]:
    """Return sqrt(x) and the distribution function at it: a sum over t, sqrt(x) = middle - half cos t, in which it is smooth."""
    lower, upper = np.sqrt(edges(c, d))
    t = np.linspace(0.0, np.pi, _POINTS)
    nu = 0.5 * (upper + lower) - 0.5 * (upper - lower) * np.cos(t)
    density = 2.0 * nu * pdf(nu**2, c, d) * 0.5 * (upper - lower) * np.sin(t)
    steps = 0.5 * (density[1:] + density[:-1]) * np.diff(t)
    total = np.concatenate([[0.0], np.cumsum(steps)])
    return nu, total / total[-1]


def cdf(x: ArrayLike, c: float, d: float) -> FloatArray:
    """Return the distribution function of the r nonzero values at x (any shape, in units of m n alpha^2 beta^2); same shape."""
    nu, law = _table(c, d)
    return np.interp(np.sqrt(np.maximum(np.asarray(x, dtype=np.float64), 0.0)), nu, law)


def median(c: float, d: float) -> float:
    """Return the median of the law, in units of m n alpha^2 beta^2."""
    nu, law = _table(c, d)
    return float(np.interp(0.5, law, nu) ** 2)


def unit(sigma: float, rows: int, cols: int, width: int) -> float:
    """Return the unit of singular values, sqrt(m n) alpha beta = sigma sqrt(m n / r), sigma the standard deviation of W."""
    return float(sigma * np.sqrt(rows * cols / width))


def sigma_of_median(singular_values: FloatArray, rows: int, cols: int) -> float:
    """Return sigma from the median of the r singular values of a rows x cols product; robust against outliers."""
    width = len(singular_values)
    middle = float(np.median(singular_values))
    return float(middle / np.sqrt(median(width / rows, width / cols)) / unit(1.0, rows, cols, width))


def singular_value_edges(sigma: float, rows: int, cols: int, width: int) -> tuple[float, float]:
    """Return the edges of the law as singular values.

    Args:
        sigma: standard deviation of an entry of the product.
        rows: m.
        cols: n.
        width: r, the inner dimension.
    """
    lower, upper = edges(width / rows, width / cols)
    scale = unit(sigma, rows, cols, width)
    return float(np.sqrt(lower)) * scale, float(np.sqrt(upper)) * scale


def distance(singular_values: FloatArray, rows: int, cols: int, sigma: float) -> float:
    """Return the largest distance between the distribution functions of the r singular values and the law; NaN at sigma = 0."""
    if not sigma > 0.0:
        return float("nan")
    width = len(singular_values)
    law = cdf((np.sort(singular_values) / unit(sigma, rows, cols, width)) ** 2, width / rows, width / cols)
    steps = np.arange(width + 1) / width
    return float(max(np.max(steps[1:] - law), np.max(law - steps[:-1])))
