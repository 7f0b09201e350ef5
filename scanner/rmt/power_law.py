"""Power laws of the largest values of a sample: exponents from each candidate for the beginning of the tail, and distances.

A sample x with density proportional to x^-alpha from x_min on has ln(x / x_min) exponentially distributed with the rate alpha - 1.
Source: Clauset, Shalizi and Newman, SIAM Review 51, 661 (2009), Eqs. 3.1 and 3.9.
"""

from __future__ import annotations

import numpy as np

from scanner.rmt.marchenko_pastur import FloatArray

# Entries of a block of rows of the table of distances: it stays in the cache of the processor.
_BLOCK = 1 << 15


def excesses(logs: FloatArray) -> FloatArray:
    """Return sum_{j >= i} (l_j - l_i) for every i but the last; l are the logarithms of the sample, ascending."""
    count = np.arange(len(logs), 0, -1, dtype=np.float64)
    found: FloatArray = np.cumsum(logs[::-1])[::-1] - count * logs
    return found[:-1]


def gaps(logs: FloatArray, rates: FloatArray, counts: FloatArray, first: int) -> tuple[FloatArray, FloatArray]:
    """Return the largest and the smallest value of (j - i)/c_i - F_i(x_j) over j >= i + first, for every i.

    F_i(x_j) = 1 - exp(-r_i (l_j - l_i)) is the distribution function of the tail that begins at x_i.

    Args:
        logs: l, logarithms of the sample, ascending; (N,).
        rates: r_i, for the first i; (M,), M <= N - first.
        counts: c_i; (M,).
        first: 0, or 1 to leave out x_i itself.

    Returns:
        Both of shape (M,).
    """
    size, tails = len(logs), len(rates)
    high, low = np.empty(tails), np.empty(tails)
    index = np.arange(size, dtype=np.float64)
    lengths = logs - logs[-1]  # small numbers, whatever the scale of the sample
    # -r_i l_j + r_i l_i as a product of two thin matrices; what depends on i alone is added after the extremes are found.
    left, right = np.stack([-rates, rates * lengths[:tails]], axis=1), np.stack([lengths, np.ones(size)])
    start = 0
    while start < tails:
        stop = min(tails, start + max(1, _BLOCK // (size - start)))
        rows = slice(start, stop)
        table = left[rows] @ right[:, start:]
        np.exp(table, out=table)
        table += np.multiply.outer(1.0 / counts[rows], index[start:])
        # Entries with j < i + first are no part of the tail: they are in the first columns of the block alone.
        width = min(stop - start + first, table.shape[1])
        outside = np.tri(stop - start, width, first - 1, dtype=bool)
        corner = table[:, :width]
        corner[outside] = -np.inf
        high[rows] = table.max(axis=1)
        corner[outside] = np.inf
        low[rows] = table.min(axis=1)
        start = stop
    own = 1.0 + index[:tails] / counts
    return high - own, low - own
