"""The Tracy-Widom distribution TW1 of the largest eigenvalue of real random matrices."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from scanner.rmt.marchenko_pastur import FloatArray

# Nodes of the quadrature and length of its interval: errors of p below 1e-13 (tests compare with Painleve II).
_NODES = 32
_LENGTH = 16.0
# Below, p is 1, and above, less than 1e-300.
_SMALLEST, _LARGEST = -10.0, 100.0


@lru_cache(maxsize=1)
def _quadrature() -> tuple[FloatArray, FloatArray]:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return (nodes + 1.0) / 2.0, np.sqrt(weights / 2.0)


def survival(s: float) -> float:
    """Return P(TW1 > s) = 1 - det(1 - K), K(x, y) = Ai((x + y)/2)/2 on (s, infinity).

    The determinant is computed by Gauss-Legendre quadrature. Small values are accurate relative to themselves.
    Source: Ferrari and Spohn, J. Phys. A 38, L557 (2005), for the kernel; Bornemann, Math. Comp. 79, 871 (2010), for the method.
    """
    from scipy.special import airy

    if not s < _LARGEST:
        return 0.0
    if s < _SMALLEST:
        return 1.0
    nodes, roots = _quadrature()
    # The kernel decays like exp(-sqrt(s) x) for large s, and begins to decay at 0 only.
    length = (_LENGTH - 2.0 * min(s, 0.0)) / np.sqrt(max(s, 1.0))
    x = s + length * nodes
    row, column = np.tril_indices(_NODES)  # the kernel is symmetric, and eigvalsh reads its lower triangle
    kernel = np.zeros((_NODES, _NODES))
    kernel[row, column] = 0.5 * length * roots[row] * roots[column] * airy((x[row] + x[column]) / 2.0)[0]
    eigenvalues = np.linalg.eigvalsh(kernel)
    return float(np.clip(-np.expm1(np.log1p(-eigenvalues).sum()), 0.0, 1.0))


@lru_cache(maxsize=16)
def quantile(p: float) -> float:
    """Return s with P(TW1 <= s) = p: -1.26865 at 0.5, 0.97929 at 0.95, 2.02343 at 0.99."""
    from scipy.optimize import brentq

    return float(brentq(lambda s: survival(s) - (1.0 - p), _SMALLEST, 20.0, xtol=1e-12))


def wishart_scale(rows: ArrayLike, cols: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return the center and the width of the largest squared singular value of a matrix of independent entries of variance 1.

    With n the larger and p the smaller dimension: (sqrt(n-1) + sqrt p)^2 and
    (sqrt(n-1) + sqrt p) (1/sqrt(n-1) + 1/sqrt p)^(1/3). In these units, it has the distribution TW1.
    Source: Johnstone, Ann. Statist. 29, 295 (2001), Theorem 1.
    """
    n, p = np.sqrt(np.maximum(rows, cols) - 1.0), np.sqrt(np.minimum(rows, cols))
    return np.asarray((n + p) ** 2), np.asarray((n + p) * np.cbrt(1.0 / n + 1.0 / p))
