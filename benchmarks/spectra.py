"""Matrices with known singular values, and noise with planted spikes, for the benchmarks of the numerics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def with_spectrum(s: Matrix, rows: int, cols: int, rng: np.random.Generator) -> Matrix:
    """Return U diag(s) V^T, rows x cols, with random orthogonal U and V."""
    u, v = (np.linalg.qr(rng.standard_normal((size, len(s))))[0] for size in (rows, cols))
    return np.asarray((u * s) @ v.T)


def even_in_logarithm(count: int, condition: float) -> Matrix:
    """Return values from 1 down to 1 / condition in equal steps of the logarithm."""
    return np.logspace(0.0, -np.log10(condition), count)


def one_outlier(count: int, condition: float) -> Matrix:
    """Return one large value and others over two decades far below it, as in a matrix with a dominant direction."""
    return np.concatenate([[1.0], np.logspace(2.0, 0.0, count - 1) / condition])


def spiked(rows: int, cols: int, rng: np.random.Generator, spikes: int = 8) -> Matrix:
    """Return noise of variance 1/max(rows, cols) plus spikes of 1.5 to 4 times the strength at which one becomes an outlier."""
    sigma = 1.0 / np.sqrt(max(rows, cols))
    strengths: Matrix = np.linspace(4.0, 1.5, min(spikes, rows, cols)) * sigma * (rows * cols) ** 0.25
    noise: Matrix = rng.standard_normal((rows, cols)) * sigma
    return noise + with_spectrum(strengths, rows, cols, rng)
