"""Metrics of a spectrum: exponents of its tail, tests and edges of its largest values, and ranks. None depends on its scale."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import scipy.linalg

from scanner.rmt import marchenko_pastur, tracy_widom
from scanner.rmt.marchenko_pastur import FloatArray
from scanner.rmt.power_law import excesses, gaps
from scanner.rmt.spectrum import MetricError, Spectrum

#: Fewest values above x_min in the tail of a power law.
SMALLEST_TAIL = 10
#: p-value up to which a power law is rejected. Source: Clauset, Shalizi and Newman, SIAM Review 51, 661 (2009), sec. 4.
REJECTED = 0.1
#: Level of the tests that count outliers.
TW_LEVEL = 0.01
#: Share of the values that BEMA leaves out at either end, and level of its edge.
BEMA_TRIMMED, BEMA_LEVEL = 0.2, 0.1
#: Fewest values in the bulk whose spacings are averaged, and fewest singular values that sigma is matched to.
SMALLEST_BULK, SMALLEST_SPECTRUM = 16, 8
#: Rows and aspect ratio of the submatrices of FARMS, and most of them along each dimension.
FARMS_ROWS, FARMS_RATIO, FARMS_WINDOWS = 100, 2, 10

# -ln p of the scaled distance x = 0.3, 0.4, ... (simulated: 10^5 samples of 1000 values, 2 * 10^5 of 200, the larger p of both).
_LOG_P = (0.0, 0.010, 0.098, 0.327, 0.688, 1.163, 1.722, 2.343, 3.045, 3.815, 4.66, 5.51, 6.48, 7.45, 8.5)
_FIRST, _STEP = 0.3, 0.1


# ---- exponents


def power_law(spectrum: Spectrum) -> dict[str, Any]:
    """Fit a power law to the largest eigenvalues, test it, and say if it means nothing.

    For every candidate x_min = lambda_i with at least `SMALLEST_TAIL` larger values, k in number, alpha = 1 + k / sum ln(lambda_j /
    x_min) is the maximum-likelihood estimate. The candidate with the smallest two-sided Kolmogorov-Smirnov distance is taken. All
    values that are not numerically zero are candidates, whatever their size: the result does not depend on the scale.
    `alpha_failure` says that the p-value is at most `REJECTED`, or that the largest value may be one of a random matrix.
    Source: Clauset, Shalizi and Newman, SIAM Review 51, 661 (2009), Eqs. 3.1, 3.2 and 3.9.

    Raises:
        MetricError: fewer than `SMALLEST_TAIL` + 1 nonzero values, or no candidate because values are equal.
    """
    s = spectrum.nonzero[::-1]
    if len(s) <= SMALLEST_TAIL:
        raise MetricError(f"{len(s)} nonzero singular values, and a power law needs more than {SMALLEST_TAIL}")
    logs = 2.0 * np.log(s)
    candidates = len(s) - SMALLEST_TAIL
    excess = excesses(logs)[:candidates]
    counts = np.arange(len(s) - 1, SMALLEST_TAIL - 1, -1, dtype=np.float64)
    # Equal values, up to rounding, have no exponent.
    equal = excess <= counts * 1e-12
    if equal.all():
        raise MetricError("all singular values are equal")
    rates = np.divide(counts, excess, out=np.ones(candidates), where=~equal)
    high, low = gaps(logs, rates, counts, 1)
    distances = np.where(equal, np.inf, np.maximum(high, 1.0 / counts - low))
    best = int(np.argmin(distances))
    k, distance = int(counts[best]), float(distances[best])
    p = exponential_p(distance, k)
    failure = None
    if spectrum.bulk_failure is None and not scaled_excess(spectrum)[0] > tracy_widom.quantile(1.0 - TW_LEVEL):
        failure = (
            "the largest singular value is not above that of random matrices: this is the edge of the bulk and no tail"
        )
    elif p <= REJECTED:
        failure = f"not a power law: distance {distance:.3f} of {k} values, p = {p:.2g}"
    return {
        "alpha": 1.0 + float(rates[best]),
        "alpha_error": float(rates[best] / np.sqrt(k)),
        "alpha_xmin": float(s[best] * spectrum.unit),
        "alpha_tail": k,
        "alpha_ks": distance,
        "alpha_p": p,
        "alpha_failure": failure,
    }


def exponential_p(distance: float, count: int) -> float:
    """Return the p-value of the two-sided Kolmogorov-Smirnov distance of a sample to the exponential law with its mean.

    It refers to independent values and a tail whose beginning is given. Choosing x_min makes distances smaller, and so does the
    repulsion of eigenvalues: in both cases p is an upper bound. So is p below 2e-4, where it is continued by an exponential.
    Source: Stephens, J. Am. Stat. Assoc. 69, 730 (1974), for the scaled distance (D - 0.2/n)(sqrt n + 0.26 + 0.5/sqrt n), which
    hardly depends on n; its distribution is simulated.
    """
    root = np.sqrt(count)
    x = (distance - 0.2 / count) * (root + 0.26 + 0.5 / root)
    at = _FIRST + _STEP * np.arange(len(_LOG_P))
    beyond = max(0.0, x - at[-1]) * (_LOG_P[-1] - _LOG_P[-2]) / _STEP
    return float(np.exp(-np.interp(x, at, _LOG_P) - beyond))


def hill(values: FloatArray) -> float:
    """Return alpha = 1 + n / sum_{j >= N/2} ln(x_j / x_{N/2}) of N positive values, ascending; n = N - floor(N/2).

    Source: Hill, Ann. Statist. 3, 1163 (1975); with the beginning of the tail in the middle of the sample as in Zhou et al.
    (TempBalance), arXiv 2312.00359, and Lu et al. (AlphaPruning), arXiv 2410.10912.

    Raises:
        MetricError: fewer than two values, or equal ones.
    """
    if len(values) < 2:
        raise MetricError("fewer than two nonzero singular values")
    tail = np.log(values[len(values) // 2 :])
    excess = float(np.sum(tail - tail[0]))
    if not excess > 1e-12 * len(tail):
        raise MetricError("all singular values in the tail are equal")
    return 1.0 + len(tail) / excess


def hill_exponent(spectrum: Spectrum) -> dict[str, Any]:
    """Compute `hill` of the squared singular values that are not numerically zero."""
    return {"alpha_hill": hill(spectrum.nonzero[::-1] ** 2)}


def windows(rows: int, cols: int) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Return the shape of the submatrices of FARMS, and the first row and column of each.

    They have `FARMS_ROWS` rows, fewer if the matrix is too small, and `FARMS_RATIO` times as many columns. Along each dimension,
    at most `FARMS_WINDOWS` are spread evenly.
    """
    height = min(FARMS_ROWS, rows, cols // FARMS_RATIO)
    width = FARMS_RATIO * height

    def starts(size: int, window: int) -> range:
        step = max(1, (size - window) // (FARMS_WINDOWS - 1))
        return range(0, size - window + 1, step)[:FARMS_WINDOWS]

    if height == 0:
        return (0, 0), []
    return (height, width), [(row, col) for row in starts(rows, height) for col in starts(cols, width)]


def farms_exponent(spectrum: Spectrum) -> dict[str, Any]:
    """Compute `hill` of the pooled eigenvalues of submatrices of one aspect ratio, so that alpha does not depend on that of W.

    Source: Hu et al. (FARMS), arXiv 2506.06280; 100 x 200 at 10 x 10 places are the defaults of the authors' program.

    Raises:
        MetricError: the matrix has no submatrix of this ratio, or fewer than two eigenvalues.
    """
    (height, width), places = windows(spectrum.rows, spectrum.cols)
    if height < 2:
        raise MetricError(f"no submatrix has {FARMS_RATIO} columns for each of two rows")
    w = spectrum.entries()
    found = [scipy.linalg.svdvals(w[row : row + height, col : col + width], check_finite=False) for row, col in places]
    s = np.sort(np.concatenate(found))
    return {"alpha_farms": hill(s[s > s[-1] * width * np.finfo(np.float64).eps] ** 2)}


# ---- the largest values


@lru_cache(maxsize=128)
def bulk_quantiles(lo: int, hi: int, shift: float = 0.0) -> FloatArray:
    """Return the (k - shift)/lo-upper quantiles of the unit Marchenko-Pastur law, 0.2 lo <= k <= 0.8 lo, k = 1 the largest.

    They are interpolated in the distribution function, to about 1e-7.
    """
    k = np.arange(int(np.ceil(BEMA_TRIMMED * lo)), int((1.0 - BEMA_TRIMMED) * lo) + 1)
    lower, upper = marchenko_pastur.edges(lo / hi)
    # Denser at the edges, where the distribution function is steep or flat.
    grid = lower + (upper - lower) * (1.0 - np.cos(np.linspace(0.0, np.pi, 4097))) / 2.0
    return np.asarray(np.interp(1.0 - (k - shift) / lo, marchenko_pastur.cdf(grid, lo / hi), grid))


def matched_variance(spectrum: Spectrum, shift: float = 0.0) -> float:
    """Return sigma^2 hi of the bulk, sum q_k s_k^2 / sum q_k^2, as a multiple of the squared unit; q_k are `bulk_quantiles`.

    Source: Ke, Ma and Lin (BEMA), J. Am. Stat. Assoc. 118, 374 (2023), arXiv 2006.00436.

    Raises:
        MetricError: there is no bulk, or it has too few values.
    """
    spectrum.require_bulk()
    if spectrum.lo < SMALLEST_SPECTRUM:
        raise MetricError(f"fewer than {SMALLEST_SPECTRUM} singular values")
    q = bulk_quantiles(spectrum.lo, spectrum.hi, shift)
    first = int(np.ceil(BEMA_TRIMMED * spectrum.lo)) - 1
    return float(q @ spectrum.singular_values[first : first + len(q)] ** 2 / (q @ q))


def scaled_excess(spectrum: Spectrum) -> FloatArray:
    """Return how far s_k^2, k = 0 ... lo - 2, is above the center for an (m - k) x (n - k) random matrix, in units of the width.

    sigma is matched to the middle 60 % of the eigenvalues, at the quantiles (k - 1/2)/lo. With the median, whose error is larger,
    p would be below 0.05 for 11 % of random 64 x 64 matrices; so it is for 6 %, and for 3 to 5 % of 1:4 ones.
    Source: Johnstone, Ann. Statist. 29, 295 (2001).

    Raises:
        MetricError: there is no bulk, or it has too few values.
    """
    variance = matched_variance(spectrum, 0.5) / spectrum.hi
    k = np.arange(spectrum.lo - 1)  # one value is always left to the noise
    center, width = tracy_widom.wishart_scale(spectrum.rows - k, spectrum.cols - k)
    return np.asarray((spectrum.singular_values[:-1] ** 2 / variance - center) / width)


def tracy_widom_tests(spectrum: Spectrum) -> dict[str, Any]:
    """Test the largest singular values.

    `tw_p` is the probability that the largest value of a random matrix is at least as large. `tw_outliers` is the number of values
    before the first s_k that is not above the 99 % quantile of the largest value of an (m - k) x (n - k) random matrix.
    Source: Kritchman and Nadler, IEEE Trans. Signal Process. 57, 3930 (2009), for the tests in turn; see `scaled_excess`.

    Raises:
        MetricError: there is no bulk, or it has too few values.
    """
    excess = scaled_excess(spectrum)
    above = excess > tracy_widom.quantile(1.0 - TW_LEVEL)
    return {
        "tw_p": tracy_widom.survival(float(excess[0])),
        "tw_outliers": int(np.argmin(np.append(above, False))),
    }


def bulk_matching(spectrum: Spectrum) -> dict[str, Any]:
    """Compute the edge of the bulk from `matched_variance`, and count the singular values above it.

    The edge, as an eigenvalue, is sigma^2 hi [(1 + sqrt g)^2 + t hi^(-2/3) g^(-1/6) (1 + sqrt g)^(4/3)], g = lo/hi, t the 90 %
    quantile of TW1.
    Source: Ke, Ma and Lin (BEMA), J. Am. Stat. Assoc. 118, 374 (2023), arXiv 2006.00436, Algorithm 1.

    Raises:
        MetricError: there is no bulk, or it has too few values.
    """
    root, t = np.sqrt(spectrum.lo / spectrum.hi), tracy_widom.quantile(1.0 - BEMA_LEVEL)
    margin = t * spectrum.hi ** (-2.0 / 3.0) * root ** (-1.0 / 3.0) * (1.0 + root) ** (4.0 / 3.0)
    edge = float(np.sqrt(matched_variance(spectrum) * ((1.0 + root) ** 2 + margin)))
    return {
        "bema_upper": edge * spectrum.unit,
        "bema_outliers": int(np.count_nonzero(spectrum.singular_values > edge)),
    }


def spike_strengths(s: FloatArray, gamma: float) -> FloatArray:
    """Return theta, the strength of the spike that makes a singular value s; NaN where s is not above the edge 1 + sqrt gamma.

    theta^2 = (s^2 - 1 - gamma + sqrt((s^2 - 1 - gamma)^2 - 4 gamma)) / 2, all in units of sigma sqrt(hi).
    Source: Benaych-Georges and Nadakuditi, J. Multivar. Anal. 111, 120 (2012); Gavish and Donoho, IEEE Trans. Inf. Theory 63, 2137
    (2017).
    """
    centered = s**2 - 1.0 - gamma
    above = s > 1.0 + np.sqrt(gamma)
    radicand = np.where(above, centered**2 - 4.0 * gamma, 0.0)
    return np.where(above, np.sqrt((centered + np.sqrt(np.maximum(radicand, 0.0))) / 2.0), np.nan)


def strengths(spectrum: Spectrum) -> dict[str, Any]:
    """Compute `spike_strengths` of the singular values, in their own units.

    Raises:
        MetricError: there is no bulk.
    """
    spectrum.require_bulk()
    scale = spectrum.sigma * np.sqrt(spectrum.hi)
    found = spike_strengths(spectrum.singular_values[: spectrum.triplets] / scale, spectrum.lo / spectrum.hi)
    return {"strength": found * scale * spectrum.unit}


# ---- the bulk


def mean_ratio(values: FloatArray) -> float:
    """Return the mean of min(d_k, d_k+1) / max(d_k, d_k+1) over neighboring gaps d of sorted values.

    0.5307 for the eigenvalues of real random matrices, 0.3863 = 2 ln 2 - 1 for independent values; no unfolding is needed.
    Source: Oganesyan and Huse, Phys. Rev. B 75, 155111 (2007); Atas et al., Phys. Rev. Lett. 110, 084101 (2013).
    """
    gap = np.abs(np.diff(values))
    one, other = gap[:-1], gap[1:]
    larger = np.maximum(one, other)
    # Two gaps of zero are as equal as gaps can be.
    return float(np.mean(np.divide(np.minimum(one, other), larger, out=np.ones(len(larger)), where=larger > 0.0)))


def level_spacings(spectrum: Spectrum) -> dict[str, Any]:
    """Compute `mean_ratio` over the middle half of the nonzero singular values between the edges of the bulk.

    Raises:
        MetricError: fewer than `SMALLEST_BULK` values in the bulk.
    """
    s = spectrum.nonzero
    inside = s[(s >= spectrum.lower) & (s <= spectrum.upper)]
    if len(inside) < SMALLEST_BULK:
        raise MetricError(f"{len(inside)} nonzero singular values in the bulk, and {SMALLEST_BULK} are needed")
    quarter = len(inside) // 4
    return {"spacing_ratio": mean_ratio(inside[quarter : len(inside) - quarter])}


def optimal_threshold(gamma: float) -> float:
    """Return omega(gamma), the optimal hard threshold as a multiple of the median singular value: 2.8582 at 1, 2.1712 at 1/2.

    omega = sqrt((2 (g + 1) + 8 g / (g + 1 + sqrt(g^2 + 14 g + 1))) / mu_g), mu_g the median of the unit Marchenko-Pastur law.
    Source: Gavish and Donoho, IEEE Trans. Inf. Theory 60, 5040 (2014), Eqs. 3 and 5.
    """
    squared = 2.0 * (gamma + 1.0) + 8.0 * gamma / (gamma + 1.0 + np.sqrt(gamma**2 + 14.0 * gamma + 1.0))
    return float(np.sqrt(squared / marchenko_pastur.median(gamma)))


def optimal_rank(spectrum: Spectrum) -> dict[str, Any]:
    """Count the singular values above `optimal_threshold` times their median: the rank that loses least to noise.

    Raises:
        MetricError: there is no bulk.
    """
    spectrum.require_bulk()
    s = spectrum.singular_values
    threshold = optimal_threshold(spectrum.lo / spectrum.hi) * float(np.median(s))
    return {"gd_rank": int(np.count_nonzero(s > threshold))}
