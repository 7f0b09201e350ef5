"""Matrices with known structure for the tests of the numerics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def orthonormal(rows: int, cols: int, rng: np.random.Generator) -> Matrix:
    """rows x cols with orthonormal columns."""
    q, r = np.linalg.qr(rng.standard_normal((rows, cols)))
    return np.asarray(q * np.sign(np.diag(r)))


def with_spectrum(s: Matrix, rows: int, cols: int, rng: np.random.Generator) -> Matrix:
    """U diag(s) V^T with random orthogonal factors."""
    k = len(s)
    return np.asarray((orthonormal(rows, k, rng) * s) @ orthonormal(cols, k, rng).T)


def graded(rows: int, cols: int, condition: float, rng: np.random.Generator) -> Matrix:
    """Singular values spread evenly in logarithm from 1 down to 1 / condition."""
    return with_spectrum(np.logspace(0, -np.log10(condition), min(rows, cols)), rows, cols, rng)


def spiked(rows: int, cols: int, thetas: Matrix, rng: np.random.Generator) -> Matrix:
    """Noise of unit variance plus spikes of strengths `thetas`."""
    spikes = (orthonormal(rows, len(thetas), rng) * thetas) @ orthonormal(cols, len(thetas), rng).T
    return np.asarray(rng.standard_normal((rows, cols)) + spikes)


def bbp_threshold(rows: int, cols: int) -> float:
    """The strength of a spike below which there is no outlier from the bulk of unit-variance noise."""
    return float((rows * cols) ** 0.25)
