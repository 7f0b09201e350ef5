"""The metrics of WeightWatcher 0.7.7, equal to its own to 1e-9, with its quirks.

Its eigenvalues are lambda = s^2, ascending, not normalized. Where it reports -1 or an infinite number, there is no value here, but
the reason. `benchmarks/weightwatcher_oracle.py` runs WeightWatcher itself; the tests compare.
Source: Martin, Peng and Mahoney, Nat. Commun. 12, 4122 (2021), and the source text of WeightWatcher 0.7.7, which decides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg

from scanner.rmt.marchenko_pastur import FloatArray
from scanner.rmt.power_law import excesses, gaps
from scanner.rmt.spectrum import MetricError, Spectrum

#: Eigenvalues up to this do not take part in the fit of a power law, whatever the scale of the matrix.
SMALLEST = 1e-5
#: Below this number of eigenvalues, exponents are corrected for bias, and tails have at least `SMALL_TAIL` values.
SMALL_SAMPLE, SMALL_TAIL = 20, 8
#: Added to shares and ranks in the entropy.
EPSILON = 1e-10
#: Bandwidth of the density that the bulk is fitted to, number of points, and density below which points do not count.
BANDWIDTH, POINTS, SMALLEST_DENSITY = 0.1, 1000, 0.01


def fit_tail(eigenvalues: FloatArray) -> tuple[float, float, float, float]:
    """Fit a power law to the largest eigenvalues; returns alpha, x_min, D and the standard error sigma of alpha.

    Of x = lambda above `SMALLEST`, ascending, every x_i begins a tail of n values: alpha_i = 1 + n / sum_{j >= i} ln(x_j / x_i),
    D_i = max_j |1 - (x_j / x_i)^(1 - alpha_i) - (j - i) / n|. The first i with the smallest D is taken; sigma = (alpha - 1)/sqrt n.
    With fewer than `SMALL_SAMPLE` values, alpha_i = 1 + (n - 1) / sum ln(x_j / x_i), and D_i = 1 for tails of fewer than
    `SMALL_TAIL` values. With fewer than `SMALL_TAIL` values, all of them are the tail, and sigma is -1/sqrt n.

    Raises:
        MetricError: fewer than two eigenvalues are large enough, or equal ones make alpha infinite.
    """
    x = eigenvalues[eigenvalues > SMALLEST]
    size = len(x)
    if size < 2:
        raise MetricError(f"fewer than two eigenvalues exceed {SMALLEST:g}")
    logs = np.log(x)
    excess, counts = excesses(logs), np.arange(size, 1, -1, dtype=np.float64)
    small = size < SMALL_SAMPLE
    with np.errstate(divide="ignore"):
        alphas = 1.0 + (counts - 1.0 if small else counts) / excess
    usable = np.isfinite(alphas) & (alphas > 1.0)
    if small:
        long_enough = (counts >= SMALL_TAIL) | (np.arange(size - 1) == 0 if size < SMALL_TAIL else False)
        usable &= long_enough & (excess > 1e-12)
    high, low = gaps(logs, np.where(usable, alphas - 1.0, 1.0), counts, 0)
    distances = np.where(usable, np.maximum(high, -low), 1.0)
    if not small:  # of equal eigenvalues, the distribution function jumps at the first
        infinite = alphas == np.inf
        distances[infinite] = 1.0 - 1.0 / counts[infinite]
    best = int(np.argmin(distances))
    if not usable[best]:
        raise MetricError("eigenvalues are equal, so that no power law has a finite exponent")
    alpha = float(alphas[best])
    # With fewer than SMALL_TAIL values, WeightWatcher computes sigma before it knows alpha, which is 0 then.
    excess_alpha = -1.0 if size < SMALL_TAIL else alpha - 1.0
    return alpha, float(x[best]), float(distances[best]), excess_alpha / float(np.sqrt(counts[best]))


def power_law(spectrum: Spectrum) -> dict[str, Any]:
    """Compute `fit_tail` and what follows from it.

    `num_pl_spikes` = #{lambda >= x_min}, `alpha_weighted` = alpha log10 lambda_max, `log_alpha_norm` = log10 sum lambda^alpha.

    Raises:
        MetricError: no power law was fitted.
    """
    eigenvalues = spectrum.eigenvalues
    alpha, x_min, distance, sigma = fit_tail(eigenvalues)
    return {
        "ww_alpha": alpha,
        "ww_xmin": x_min,
        "ww_D": distance,
        "ww_sigma": sigma,
        "ww_num_pl_spikes": int(np.count_nonzero(eigenvalues >= x_min)),
        "ww_alpha_weighted": alpha * float(np.log10(eigenvalues[-1])),
        "ww_log_alpha_norm": float(np.log10(np.sum(eigenvalues**alpha))),
    }


def norms(spectrum: Spectrum) -> dict[str, Any]:
    """Compute log10 sum lambda, log10 lambda_max and sum lambda / lambda_max.

    Raises:
        MetricError: all eigenvalues are zero.
    """
    eigenvalues = spectrum.eigenvalues
    total, largest = float(np.sum(eigenvalues)), float(eigenvalues[-1])
    if not largest > 0.0:
        raise MetricError("all eigenvalues are zero")
    return {
        "ww_log_norm": float(np.log10(total)),
        "ww_log_spectral_norm": float(np.log10(largest)),
        "ww_stable_rank": total / largest,
    }


def ranks(spectrum: Spectrum) -> dict[str, Any]:
    """Compute the rank #{s > s_max hi eps} and the entropy -sum p ln p / ln(rank + e), p = lambda / sum lambda + e, e = 1e-10.

    The entropy of a matrix of rank 1 is divided by ln(1 + 1e-10) and therefore huge.

    Raises:
        MetricError: all eigenvalues are zero.
    """
    eigenvalues = spectrum.eigenvalues
    if not eigenvalues[-1] > 0.0:
        raise MetricError("all eigenvalues are zero")
    s = np.sqrt(eigenvalues)
    rank = int(np.count_nonzero(s > s[-1] * spectrum.hi * np.finfo(np.float64).eps))
    p = eigenvalues / np.sum(eigenvalues) + EPSILON
    return {"ww_matrix_rank": rank, "ww_entropy": float(-np.sum(p * np.log(p)) / np.log(rank + EPSILON))}


def density(values: FloatArray, at: FloatArray) -> FloatArray:
    """Return the kernel density of sorted values with the linear kernel max(0, 1 - |x|/h)/h, h = `BANDWIDTH`, at points.

    Sums over values are differences of cumulative sums, so that the cost does not grow with their number times that of points.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    left, middle, right = (np.searchsorted(values, at + shift) for shift in (-BANDWIDTH, 0.0, BANDWIDTH))
    below, above = middle - left, right - middle
    near = below * (1.0 - at / BANDWIDTH) + (sums[middle] - sums[left]) / BANDWIDTH
    far = above * (1.0 + at / BANDWIDTH) - (sums[right] - sums[middle]) / BANDWIDTH
    return np.asarray((near + far) / (len(values) * BANDWIDTH))


def _residuals(sigmas: FloatArray, x: FloatArray, y: FloatArray, ratio: float) -> FloatArray:
    """Return the sum of squared differences between the density y at x and the law of each sigma; `ratio` is hi/lo.

    Square matrices are compared with a quarter circle from 0 to 2, whatever sigma, and others with the Marchenko-Pastur law, unless
    its edges are not where the density is.
    """
    s = sigmas[:, None]
    if ratio == 1.0:
        law = np.sqrt(np.maximum(4.0 - x**2, 0.0)) / (np.pi * s * s)
        return np.asarray(np.sum(np.square(law - y), axis=1))
    root = np.sqrt(1.0 / ratio)
    upper, lower = np.square(s * (1.0 + root)), np.square(s * (1.0 - root))
    inverse = np.divide(ratio, x, out=np.zeros(len(x)), where=x > 0.0)  # there is no density at 0
    law = np.sqrt(np.maximum((upper - x) * (x - lower), 0.0)) * (inverse / (2.0 * np.pi * s * s))
    peak = x[int(np.argmax(y))]
    outside = (upper < peak) | (upper > x[-1]) | (lower > peak)
    return np.where(outside[:, 0], 1000.0**2 * len(y), np.sum(np.square(law - y), axis=1))


def fit_bulk(eigenvalues: FloatArray, ratio: float) -> float:
    """Return the sigma of the law that fits the density of the eigenvalues best: on a grid of 195, refined by Nelder and Mead.

    Args:
        eigenvalues: ascending, with mean 1.
        ratio: hi/lo.

    Raises:
        MetricError: the density is too small everywhere.
    """
    from scipy.optimize import fmin

    values = np.sqrt(eigenvalues) if ratio == 1.0 else eigenvalues
    x = np.linspace(0.0, values[-1] + 0.5, POINTS)
    y = density(values, x)
    kept = y > SMALLEST_DENSITY
    if not kept.any():
        raise MetricError("the density of the eigenvalues is too small everywhere to fit a bulk")
    x, y = x[kept], y[kept]
    scale = np.sqrt(eigenvalues[-1] / np.square(1.0 + 1.0 / np.sqrt(ratio)))
    grid = np.mgrid[0.05 * scale : 2.0 * scale : 0.01 * scale]
    start = grid[int(np.argmin(_residuals(grid, x, y, ratio)))]
    found = fmin(lambda sigma: float(_residuals(np.asarray(sigma), x, y, ratio)[0]), start, disp=False)
    return float(found[0])


def bulk_edge(eigenvalues: FloatArray, lo: int, hi: int) -> tuple[FloatArray, float, float]:
    """Return the eigenvalues scaled to mean 1, and in their units the edge of the bulk and the limit above which they are spikes.

    With sigma from `fit_bulk`, the edge is b = sigma^2 (1 + sqrt(lo/hi))^2, and the limit b + sqrt(sqrt(lo/hi) b^(2/3) lo^(-2/3)).

    Raises:
        MetricError: all eigenvalues are zero, or no bulk was fitted.
    """
    total, ratio = float(np.sum(eigenvalues)), hi / lo
    scale = np.sqrt(len(eigenvalues)) / np.sqrt(total) if total > 0.0 else np.inf
    if not np.isfinite(scale * scale):
        raise MetricError("all eigenvalues are zero or out of the range of float64")
    scaled = scale * scale * eigenvalues
    edge = (fit_bulk(scaled, ratio) * (1.0 + 1.0 / np.sqrt(ratio))) ** 2
    margin = np.sqrt(1.0 / np.sqrt(ratio) * np.power(edge, 2.0 / 3.0) * np.power(lo, -2.0 / 3.0))
    return scaled, float(edge), float(edge + margin)


def spikes(spectrum: Spectrum) -> dict[str, Any]:
    """Count the eigenvalues above the limit of `bulk_edge`; `mp_softrank` is its edge over the largest eigenvalue.

    Raises:
        MetricError: all eigenvalues are zero, or no bulk was fitted.
    """
    scaled, edge, limit = bulk_edge(spectrum.eigenvalues, spectrum.lo, spectrum.hi)
    return {
        "ww_num_spikes": int(np.count_nonzero(scaled > limit)),
        "ww_mp_softrank": edge / float(scaled[-1]),
    }


def jensen_shannon(p: FloatArray, q: FloatArray) -> float:
    """Return the Jensen-Shannon distance of two lists of numbers of one length, each divided by its sum, in nats.

    As in WeightWatcher, the lists themselves are taken for distributions, and their mean is formed before they are divided.
    """
    middle = (p + q) / 2.0

    def divergence(one: FloatArray) -> float:
        a, b = one / one.sum(), middle / middle.sum()
        positive = a > 0.0
        return float(np.sum(a[positive] * np.log(a[positive] / b[positive])))

    return float(np.sqrt(max((divergence(p) + divergence(q)) / 2.0, 0.0)))


def random_distance(spectrum: Spectrum) -> dict[str, Any]:
    """Compute `jensen_shannon` between the eigenvalues and those of the matrix with its entries in random order.

    The order is that of the control `permuted` with seed 0, so that the result is the same in every run.

    Raises:
        MetricError: all eigenvalues are zero.
    """
    from scanner.rmt.ensembles import control_of

    eigenvalues = spectrum.singular_values[::-1] ** 2  # the distance does not depend on the unit
    if not eigenvalues[-1] > 0.0:
        raise MetricError("all eigenvalues are zero")
    random = scipy.linalg.svdvals(control_of("permuted", spectrum.entries(), 0), check_finite=False)
    return {"ww_rand_distance": jensen_shannon(eigenvalues, random[::-1] ** 2)}
