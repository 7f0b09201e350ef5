"""Measures of a spectrum or of a sequence of p-values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scanner.rmt import marchenko_pastur
from scanner.rmt.marchenko_pastur import FloatArray

#: p_local averages p over this number of ranks on either side.
LOCAL_HALF_WIDTH = 7


def numerical_rank(singular_values: FloatArray, rows: int, cols: int) -> int:
    """Return the number of singular values above s_max * max(rows, cols) * eps; the others are zero up to rounding in float64.

    The threshold is that of `numpy.linalg.matrix_rank` and MATLAB's `rank`.
    """
    largest = float(singular_values.max(initial=0.0))
    tolerance = largest * max(rows, cols) * np.finfo(np.float64).eps
    return int(np.count_nonzero(singular_values > tolerance))


def regions(singular_values: FloatArray, lower: float, upper: float, rank: int) -> NDArray[np.str_]:
    """Return `left`, `bulk`, `right` or `null` for each singular value (descending); outliers are strictly outside the edges."""
    region = np.full(singular_values.shape, "bulk", dtype="<U5")
    region[singular_values > upper] = "right"
    region[singular_values < lower] = "left"
    region[rank:] = "null"
    return region


def stable_rank(singular_values: FloatArray) -> float:
    """Return the sum of s^2 divided by the largest s^2: 1 for a rank-1 matrix, 0 for a zero matrix.

    Source: Rudelson and Vershynin, 2007.
    """
    largest = float(singular_values.max(initial=0.0))
    return float(np.sum((singular_values / largest) ** 2)) if largest > 0.0 else 0.0


def effective_rank(singular_values: FloatArray) -> float:
    """Return exp of the entropy of s / sum s: r for r equal values, 0 for a zero matrix.

    Source: Roy and Vetterli, EUSIPCO 2007.
    """
    total = float(np.sum(singular_values))
    if total == 0.0:
        return 0.0
    share = singular_values[singular_values > 0.0] / total
    return float(np.exp(-np.sum(share * np.log(share))))


def mp_distance(singular_values: FloatArray, rows: int, cols: int, sigma: float) -> float:
    """Return the largest distance between the distribution functions of spectrum and Marchenko-Pastur law; NaN at sigma = 0."""
    if not sigma > 0.0:
        return float("nan")
    lo, hi = min(rows, cols), max(rows, cols)
    ascending = np.sort(singular_values)
    law = marchenko_pastur.cdf(ascending**2 / (hi * sigma**2), lo / hi)
    steps = np.arange(len(ascending) + 1) / len(ascending)
    return float(max(np.max(steps[1:] - law), np.max(law - steps[:-1])))


def local_average(p_values: FloatArray) -> FloatArray:
    """Return p_local(k), the mean of p over k-7 ... k+7; the window shrinks at both ends, and NaN entries are left out.

    On random matrices its mean is 0.5 and its standard deviation 1/sqrt(180) = 0.0745.
    Source: Staats, Thamm, Rosenow, arXiv 2410.17770, sec. 4.
    """
    known = ~np.isnan(p_values)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, p_values, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    k = np.arange(len(p_values))
    first, last = np.maximum(k - LOCAL_HALF_WIDTH, 0), np.minimum(k + LOCAL_HALF_WIDTH + 1, len(p_values))
    inside = count[last] - count[first]
    mean = np.divide(total[last] - total[first], inside, out=np.full(len(p_values), np.nan), where=inside > 0)
    return np.where(known, mean, np.nan)
