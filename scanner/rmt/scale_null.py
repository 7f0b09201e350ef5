"""The scale null: independent Gaussian entries that have the row and column variances of a matrix.

An i.i.d. null asks two questions at once: a matrix whose rows or columns have unequal norms deviates from it even if the signs and
places of its entries are random. Here Var W_ij = a_i b_j. The law of such a matrix follows from two scalars. At w = s + i eta, s a
singular value, they are the solution in the upper half plane of

    X = - sum_i a_i / (w + a_i Y),        Y = - sum_j b_j / (w + b_j X)

(X = w delta, Y = w delta~ in the notation of Hachem, Loubaton and Najim). For every w in the upper half plane there is exactly one
solution there (Ajanki, Erdos and Krueger, Mem. AMS 261, 2019), so a root that Newton's method finds is checked by its residual and
its sign. Outside the support of the spectrum everything is real and follows from one parameter t:

    F_a(x) = sum_i a_i / (x - a_i) = t = F_b(y),        s^2 = t x y

and the edges of the support are the stationary points of t -> t x y, where sum (a_i / (x - a_i))^2 sum (b_j / (y - b_j))^2 = t^2.

Sources: Hachem, Loubaton and Najim, Ann. Appl. Probab. 17, 875 (2007); Paul and Silverstein, J. Multivar. Anal. 100, 37 (2009);
Couillet and Hachem, Random Matrices Theory Appl. 3 (2014); for use on data Landa et al., arXiv 2103.13840.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq

from scanner.rmt.entries import ks_distances
from scanner.rmt.marchenko_pastur import FloatArray

ComplexArray = NDArray[np.complex128]

#: Bins of the logarithm of the variances, in the solver: at least so many, and so many that none is wider than this.
#: The upper edge is computed without bins, the lower one with more.
BINS, WIDEST_BIN = 32, 0.15
#: Imaginary part of w, relative to s: half of that of w^2 relative to s^2.
_IMAGINARY = 5e-8
_NEWTON_STEPS = 30
# Steps before another start is tried, and how often.
_FIRST_STEPS, _ATTEMPTS = 12, 4
# The last step of Newton's method, relative to Y. Outside the support, the imaginary part is as small as that of w, and counts.
_TOLERANCE = 1e-8
# One of so many points is solved first, if there are many: between them, interpolation is the better start.
_COARSE, _MANY = 4, 64
# A point belongs to the support if Im delta / |delta| is above this; next to an outer edge, the edge itself decides.
_INSIDE = 2e-3
_NEXT_TO_AN_EDGE = 0.01
# So many times the imaginary part of w: outside the support, that of w Y is of its order but within 1e-7 of an edge.
_DENSE = 1e3
# Points of the search for the lower edge, and the first step of the descent to the real axis.
_LOWER_GRID, _LOWER_BINS, _LOWER_STEP = 40, 256, 0.01
_DESCENT = 0.4
# Entries of a head from which its mass can be estimated.
_LEAST_WIDTH = 8
# Change of the fourth cumulant, times sqrt(length) / 12, below which it is not corrected: D would change by 1 % of its mean.
_NEGLIGIBLE = 0.03


class ScaleError(ArithmeticError):
    """The scale null of this matrix cannot be computed; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Row and column variances: Var W_ij = rows[i] * cols[j]; float64 tensors of shapes (m,) and (n,), zeros where W is zero.

    `kept` tells which triplets an estimate was made from; None: the variances are no estimate.
    """

    rows: torch.Tensor
    cols: torch.Tensor
    kept: torch.Tensor | None = None

    @cached_property
    def upper(self) -> _Edge:
        """The upper edge of the support, which several functions need."""
        return _upper(self)


@dataclass(frozen=True, kw_only=True)
class ScaleEdges:
    """Outermost edges of the support of the singular values, and the strength from which a delocalized spike is an outlier."""

    lower: float
    upper: float
    threshold: float


# ---- the edges


@dataclass(frozen=True, kw_only=True)
class _Edge:
    """An edge as s^2, and its x and y."""

    value: float
    x: float
    y: float


def _nonzero(variances: torch.Tensor) -> FloatArray:
    found: FloatArray = variances[variances > 0.0].cpu().numpy()
    return found


@dataclass(frozen=True, kw_only=True)
class _Values:
    """Positive variances, each with the number of its rows or columns."""

    values: FloatArray
    counts: FloatArray

    @property
    def total(self) -> float:
        """Number of rows or columns."""
        return float(self.counts.sum())

    def at_extreme(self, extreme: float) -> float:
        """Number of those with this variance."""
        return float(self.counts[self.values == extreme].sum())

    def inverse(self, t: FloatArray, start: FloatArray) -> FloatArray:
        """Solve sum a / (x - a) = t for x, shape of t; 1 / sum is concave between two poles, so Newton's method is monotone.

        Args:
            t: what the sum shall be.
            start: on the side of the solution from which the steps cannot overshoot.
        """
        x = np.array(start, dtype=np.float64)
        weights = self.counts * self.values
        for _ in range(100):
            with np.errstate(all="ignore"):  # what is not finite is found by the caller
                inverse = 1.0 / (x[:, None] - self.values)
                total = inverse @ weights
                inverse *= inverse
                x += (step := (total**2 / t - total) / (inverse @ weights))
            if np.all(np.abs(step) <= 1e-13 * np.abs(x)):
                break
        return x

    def spread(self, x: FloatArray) -> FloatArray:
        """Return sum (a / (x - a))^2, shape of x."""
        found: FloatArray = np.square(self.values / (x[:, None] - self.values)) @ self.counts
        return found


def _each(values: FloatArray) -> _Values:
    return _Values(values=values, counts=np.ones(len(values)))


def _newton_upper(a: FloatArray, b: FloatArray) -> _Edge | None:
    """Newton's method for x and y at the upper edge; a and b at most 1. None if it does not converge."""
    t = np.sqrt(len(a) * len(b))
    x, y = 1.0 + a.sum() / t, 1.0 + b.sum() / t
    for _ in range(50):
        terms = []
        for values, at in ((a, x), (b, y)):
            ratio = values / (at - values)
            square = ratio * ratio
            inverse = ratio / values
            # sum, -d sum, sum of squares, -d sum of squares / 2; the derivatives by log(at - 1)
            terms.append((ratio.sum(), (ratio @ inverse) * (at - 1.0), square.sum(), (square @ inverse) * (at - 1.0)))
        (f, df, g, dg), (k, dk, h, dh) = terms
        errors = np.log([f / k, g * h / (f * k)])
        j = np.array([[-df / f, dk / k], [-2.0 * dg / g + df / f, -2.0 * dh / h + dk / k]])
        determinant = j[0, 0] * j[1, 1] - j[0, 1] * j[1, 0]
        if not (np.isfinite(errors).all() and determinant != 0.0):
            return None
        steps = (
            (errors[0] * j[1, 1] - errors[1] * j[0, 1]) / determinant,
            (j[0, 0] * errors[1] - j[1, 0] * errors[0]) / determinant,
        )
        x = 1.0 + (x - 1.0) * np.exp(-np.clip(steps[0], -2.0, 2.0))
        y = 1.0 + (y - 1.0) * np.exp(-np.clip(steps[1], -2.0, 2.0))
        if max(abs(steps[0]), abs(steps[1])) < 1e-12:
            return _Edge(value=float((a / (x - a)).sum() * x * y), x=float(x), y=float(y))
    return None


def _upper_at(a: _Values, b: _Values, t: float) -> tuple[float, _Edge]:
    """Return log(spread spread / t^2), which rises with t > 0, and the point; the largest variances are 1."""
    at = np.array([t])
    x, y = (side.inverse(at, 1.0 + side.at_extreme(1.0) / at) for side in (a, b))
    value = float(np.log(a.spread(x) * b.spread(y) / t**2)[0])
    return value, _Edge(value=float((at * x * y)[0]), x=float(x[0]), y=float(y[0]))


def _upper(profile: Profile) -> _Edge:
    """Return the upper edge of the support."""
    a, b = _nonzero(profile.rows), _nonzero(profile.cols)
    unit = a.max(), b.max()
    a, b = a / unit[0], b / unit[1]
    found = _newton_upper(a, b)
    if found is None:
        start, rows, cols = 0.5 * np.log(len(a) * len(b)), _each(a), _each(b)
        t = _root(lambda log_t: _upper_at(rows, cols, float(np.exp(log_t)))[0], start, 1.0, 1e-12)
        found = _upper_at(rows, cols, float(np.exp(t)))[1]
    return _Edge(value=found.value * unit[0] * unit[1], x=found.x * unit[0], y=found.y * unit[1])


def _root(function: Callable[[float], float], start: float, width: float, precision: float) -> float:
    """Return the root of a rising function near `start`, from a bracket that is widened as needed."""
    for _ in range(200):
        if function(start - width) < 0.0 <= function(start + width):
            return float(brentq(function, start - width, start + width, xtol=precision))
        width *= 2.0
    raise ScaleError("the edges of the spectrum of the variance profile were not found")


def _lower_at(a: _Values, b: _Values, size: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return log(spread spread / t^2) at t = -size, a.total < size < b.total, and s^2."""
    smallest = float(a.values.min())
    x = a.inverse(-size, smallest * (1.0 - a.at_extreme(smallest) / size))
    y = b.inverse(-size, -b.values.min() * (b.total / size - 1.0))
    with np.errstate(all="ignore"):
        return np.log(a.spread(x) * b.spread(y) / size**2), -size * x * y


def _lower(profile: Profile) -> float:
    """Return the lower edge of the support as s^2: 0 if as many rows as columns have entries.

    Between 0 and the edge, -t goes from the smaller to the larger number. The first stationary point is the edge.
    """
    near, far = profile.rows, profile.cols
    short, long = int((near > 0.0).sum()), int((far > 0.0).sum())
    if short == long:
        return 0.0
    if short > long:
        near, far, short, long = far, near, long, short
    units = float(near.max()), float(far.max())
    rough = [
        _Values(values=v / unit, counts=c) for (v, c), unit in zip((binned(near), binned(far)), units, strict=True)
    ]
    log_ratio = np.log(long / short)
    share = np.linspace(0.0, 1.0, _LOWER_GRID + 2)
    share[[0, -1]] = share[1] * 1e-6, 1.0 - share[1] * 1e-6  # the end points themselves are poles
    crossed = np.flatnonzero(_lower_at(rough[0], rough[1], short * np.exp(log_ratio * share))[0] >= 0.0)
    if not crossed.size or crossed[0] == 0:
        raise ScaleError("the lower edge of the spectrum of the variance profile was not found")
    # With many bins: s^2 has its maximum there, which a parabola through the three largest of five values gives.
    rows, cols = (
        _Values(values=v / unit, counts=c)
        for (v, c), unit in zip((binned(near, _LOWER_BINS), binned(far, _LOWER_BINS)), units, strict=True)
    )
    center, step = share[crossed[0]] - 0.5 * share[1], _LOWER_STEP
    for _ in range(200):
        points = np.clip(center + step * np.arange(-2.0, 3.0), share[0], share[-1])
        values = _lower_at(rows, cols, short * np.exp(log_ratio * points))[1]
        at = int(values.argmax())
        if 0 < at < 4 and np.ptp(np.diff(points)) < 1e-9 * step:
            before, peak, after = values[at - 1 : at + 2]
            bend = before - 2.0 * peak + after
            found = peak - (after - before) ** 2 / (8.0 * bend) if bend < 0.0 else peak
            return float(found) * units[0] * units[1]
        center = float(points[at])
        if 0 < at < 4:
            step *= 0.3  # next to a pole
    raise ScaleError("the lower edge of the spectrum of the variance profile was not found")


def edges(profile: Profile) -> ScaleEdges:
    """Compute the edges of the support of the singular values, and the threshold of delocalized spikes.

    Equal variances give sigma (sqrt(hi) -/+ sqrt(lo)) and sigma (m n)^(1/4).

    Raises:
        ScaleError: an edge was not found.
    """
    top = profile.upper
    lower = _lower(profile)
    # theta_c = (s^2 mean|T_i| mean|T~_j|)^(-1/2) at the upper edge, T_i = -1 / (s^2 (1 - a_i / x)).
    t = float((top.x / (top.x - profile.rows)).mean()) / top.value
    t_other = float((top.y / (top.y - profile.cols)).mean()) / top.value
    found = np.sqrt([max(lower, 0.0), top.value, 1.0 / (top.value * t * t_other)])
    if not np.isfinite(found).all():
        raise ScaleError("the edges of the spectrum of the variance profile are not finite")
    return ScaleEdges(lower=float(found[0]), upper=float(found[1]), threshold=float(found[2]))


# ---- the equations inside and outside the support


@dataclass(frozen=True, kw_only=True)
class Scalars:
    """Solution at each singular value, complex tensors of shape (K,): w, X and Y."""

    w: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor


def binned(variances: torch.Tensor, least: int = BINS) -> tuple[FloatArray, FloatArray]:
    """Return means and counts of positive variances, binned in their logarithm; zeros are left out. Equal ones share a bin.

    Args:
        variances: shape (length,).
        least: number of bins; more where one of them would be wider than `WIDEST_BIN`.
    """
    positive = _nonzero(variances)
    logs = np.log(positive)
    low = logs.min()
    span = logs.max() - low
    bins = max(least, int(np.ceil(span / WIDEST_BIN)))
    index = np.zeros(len(logs), dtype=np.int64)
    if span > 1e-12:
        index = np.minimum(((logs - low) * (bins / span)).astype(np.int64), bins - 1)
    counts = np.bincount(index, minlength=bins)
    sums = np.bincount(index, weights=positive, minlength=bins)
    filled = counts > 0
    return sums[filled] / counts[filled], counts[filled].astype(np.float64)


class _Equations:
    """The equations of a binned profile, in units in which the largest variances are 1.

    They are solved on the CPU: a few hundred thousand operations, in many small steps.
    """

    def __init__(self, profile: Profile) -> None:
        (self.a, self.c), (self.b, self.d) = binned(profile.rows), binned(profile.cols)
        self.units = float(self.a.max()), float(self.b.max())
        self.a, self.b = self.a / self.units[0], self.b / self.units[1]
        self.unit = float(np.sqrt(self.units[0]) * np.sqrt(self.units[1]))
        # Weights of the sums of first and second powers, for a product of matrices.
        self._first = self.c * self.a, self.d * self.b
        self._second = self.c * self.a**2, self.d * self.b**2

    def _sums(self, side: int, w: ComplexArray, other: ComplexArray) -> tuple[ComplexArray, ComplexArray]:
        """Return sum a / (w + a other) and sum a^2 / (w + a other)^2; real arithmetic is several times as fast as complex."""
        values = self.b if side else self.a
        real = np.multiply.outer(other.real, values)
        real += w.real[:, None]
        imaginary = np.multiply.outer(other.imag, values)
        imaginary += w.imag[:, None]
        size = real * real
        size += imaginary * imaginary
        real /= size
        imaginary /= size
        first, second = self._first[side], self._second[side]
        one = real @ first - 1j * (imaginary @ first)
        mixed = (real * imaginary) @ second
        real *= real
        imaginary *= imaginary
        real -= imaginary
        return one, real @ second - 2j * mixed

    def evaluate(self, w: ComplexArray, y: ComplexArray) -> tuple[ComplexArray, ComplexArray, ComplexArray]:
        """Return X(Y), the image of Y under the fixed-point map, and the derivative of Y - image."""
        x, inner = self._sums(0, w, y)
        x = -x
        image, outer = self._sums(1, w, x)
        return x, -image, 1.0 - inner * outer

    def newton(
        self, w: ComplexArray, y: ComplexArray, steps: int = _NEWTON_STEPS
    ) -> tuple[ComplexArray, NDArray[np.bool_]]:
        """Return Y and which of them are solutions: the step has become small, and Y is in the upper half plane."""
        y = y.copy()
        solved = np.zeros(len(w), dtype=bool)
        active = np.arange(len(w))
        with np.errstate(all="ignore"):  # what is not finite is not solved
            for _ in range(steps):
                now = y[active]
                _, image, slope = self.evaluate(w[active], now)
                step = (now - image) / slope
                following = now - step
                outside = ~(following.imag > 0.0)
                # Half of the way to the image, which is always in the upper half plane.
                following = np.where(outside, 0.5 * (now + image), following)
                done = (np.abs(step) <= _TOLERANCE * np.abs(now)) & ~outside
                y[active], solved[active] = following, done
                active = active[~done]
                if len(active) == 0:
                    break
        return y, solved

    def guess(self, w: ComplexArray, lower: float, upper: float) -> ComplexArray:
        """Return Y of equal variances, with the support stretched to [lower, upper]."""
        m, n = self.c.sum(), self.d.sum()
        mean = self.c @ self.a / m
        variance = mean * (self.d @ self.b) / n
        low, high = (np.sqrt(variance) * abs(np.sqrt(n) + sign * np.sqrt(m)) for sign in (-1.0, 1.0))
        s = w.real
        moved = low + (s - lower) * ((high - low) / (upper - lower))
        moved = np.where(s > upper, s * (high / upper), moved)
        moved = np.where(s < lower, s * (low / max(lower, 1e-300)), moved)
        at = moved + 1j * w.imag
        b = at + (n - m) * variance / at
        root = np.sqrt(b * b - 4.0 * n * variance)
        one, other = 0.5 * (root - b), -0.5 * (root + b)
        y = np.where(one.imag > other.imag, one, other) / mean
        found: ComplexArray = y.real + 1j * np.maximum(y.imag, w.imag * 1e-3)
        return found

    def solutions(self, w: ComplexArray, lower: float, upper: float) -> ComplexArray:
        """Return Y at each w, which are in the order of their real parts.

        Raises:
            ScaleError: no solution was found.
        """
        if len(w) < _MANY:
            start = self.guess(w, lower, upper)
        else:
            coarse = np.append(np.arange(0, len(w) - 1, _COARSE), len(w) - 1)
            found = self.solutions_at(w[coarse], self.guess(w[coarse], lower, upper), upper)
            start = _interpolated(w, w[coarse], found)
        return self.solutions_at(w, start, upper)

    def solutions_at(self, w: ComplexArray, start: ComplexArray, upper: float) -> ComplexArray:
        """Return Y at each w, from a start at each.

        Raises:
            ScaleError: no solution was found.
        """
        y, solved = self.newton(w, start, _FIRST_STEPS)
        for attempt in range(_ATTEMPTS):
            missing = np.flatnonzero(~solved)
            if not len(missing):
                return y
            known = np.flatnonzero(solved)
            if attempt % 2 == 1 or not len(known):
                # From far above the spectrum: monotone on the real axis, if the point is above the support.
                begin = -(self.d @ self.b) / w[missing]
            else:
                # From the nearest solution, as it is or (outside the support) without its imaginary part.
                begin = y[known[np.abs(known[:, None] - missing).argmin(axis=0)]]
                if attempt == 0:
                    begin = begin.real + 1j * (np.abs(begin) * _IMAGINARY)
            y[missing], solved[missing] = self.newton(w[missing], begin, _FIRST_STEPS)
        missing = np.flatnonzero(~solved)
        if len(missing):
            y[missing] = self.continued(w[missing], upper)
        return y

    def continued(self, target: ComplexArray, upper: float) -> ComplexArray:
        """Solve far above the real axis, where Y is small, and follow the solution down to the target.

        Raises:
            ScaleError: a step fails even if it is made small.
        """
        s, lowest = target.real, target.imag
        height = np.full(len(s), 4.0 * upper)
        y, solved = self.newton(s + 1j * height, -(self.d @ self.b) / (s + 1j * height))
        factor = np.full(len(s), _DESCENT)
        for _ in range(400):
            if not solved.all() or (factor > 0.9999).any():
                break
            if (height <= lowest).all():
                return y
            lowered = np.maximum(height * factor, lowest)
            found, good = self.newton(s + 1j * lowered, y)
            y, height = np.where(good, found, y), np.where(good, lowered, height)
            factor = np.where(good, np.maximum(factor * 0.8, _DESCENT), np.sqrt(factor))
        raise ScaleError("the equations of the variance profile were not solved: Newton's method does not converge")


def _interpolated(w: ComplexArray, known: ComplexArray, y: ComplexArray) -> ComplexArray:
    """Interpolate Y linearly in the real part of w."""
    order = np.argsort(known.real)
    at, points, values = w.real, known.real[order], y[order]
    found: ComplexArray = np.interp(at, points, values.real) + 1j * np.interp(at, points, values.imag)
    return found


def solve(profile: Profile, singular_values: torch.Tensor, fitted: ScaleEdges) -> Scalars:
    """Solve the equations just above the real axis at each singular value.

    Args:
        profile: row and column variances.
        singular_values: positive, shape (K,), on the device of the profile.
        fitted: the edges of the profile.

    Raises:
        ScaleError: no solution was found.
    """
    equations = _Equations(profile)
    s = singular_values.cpu().numpy() / equations.unit
    w = s + 1j * (s * _IMAGINARY)
    # X a and Y b have no unit but that of w.
    to_x, to_y = equations.unit / equations.units[1], equations.unit / equations.units[0]
    y = equations.solutions(w, fitted.lower / equations.unit, fitted.upper / equations.unit)
    x, image, _ = equations.evaluate(w, y)
    if not ((np.abs(image - y) <= 1e-6 * np.abs(y)).all() and (y.imag > 0.0).all() and (x.imag > 0.0).all()):
        raise ScaleError("the equations of the variance profile were not solved: the residual is too large")
    device = profile.rows.device
    at, left, right = (torch.from_numpy(values).to(device) for values in (w * equations.unit, x * to_x, y * to_y))
    return Scalars(w=at, x=left, y=right)


def in_support(found: Scalars, singular_values: torch.Tensor, fitted: ScaleEdges) -> NDArray[np.bool_]:
    """Return which of the singular values are in the support of the law: between the edges, and not in a gap; shape (K,).

    A few rows or columns of a much larger (or smaller) scale have a part of the support of their own.
    """
    s = singular_values
    delta = found.x / found.w
    dense = delta.imag > _INSIDE * delta.abs()
    near = (s > (1.0 - _NEXT_TO_AN_EDGE) * fitted.upper) | (s < (1.0 + _NEXT_TO_AN_EDGE) * fitted.lower)
    inside: NDArray[np.bool_] = ((dense | near) & (s >= fitted.lower) & (s <= fitted.upper)).cpu().numpy()
    return inside


def density(profile: Profile, singular_values: torch.Tensor, fitted: ScaleEdges) -> torch.Tensor:
    """Return the density of the min(m', n') nonzero singular values at each of them; m' and n' count rows and columns with entries.

    Arguments and errors are those of `solve`.
    """
    return density_at(profile, solve(profile, singular_values, fitted))


def density_at(profile: Profile, found: Scalars) -> torch.Tensor:
    """Return the `density` at the singular values at which the equations were solved."""
    rows, counts = (torch.from_numpy(values).to(found.w.device) for values in binned(profile.rows))
    m, n = int((profile.rows > 0.0).sum()), int((profile.cols > 0.0).sum())
    resolvent = -(1.0 / (found.w[:, None] + found.y[:, None] * rows)) @ counts.to(torch.complex128)
    # The symmetrized matrix has each value twice, with both signs; its resolvent on the side of the rows has weight 1/2.
    value: torch.Tensor = 2.0 * resolvent.imag / (np.pi * min(m, n))
    return value


# ---- the vectors


def shares(profile: Profile, singular_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the constants c_k of `vector_distances` for left and right vectors, each of shape (K,).

    The variance of row i is estimated from its entries, and so in part from entry i of u_k itself. To first order this changes the
    fourth cumulant of the standardized entry by 12 c_k, c_k = Q (pi_k / sum pi^2 - 1/2), pi_k the share of the triplet in the sum
    of squares (0 if it was left out) and Q = sum b^2 / (sum b)^2 the inverse number of entries that make the estimate.
    """
    if profile.kept is None:
        return torch.zeros_like(singular_values), torch.zeros_like(singular_values)
    share = torch.where(profile.kept[: len(singular_values)], singular_values.square(), 0.0)
    share = share / share.sum()
    excess = share / share.square().sum() - 0.5
    left, right = (float(b.square().sum() / b.sum() ** 2) * excess for b in (profile.cols, profile.rows))
    return left, right


def _without_own(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Return x / sqrt(1 - c (x^2 - 1)) of rows with any mean square, which counts as 1; x is overwritten."""
    squares = x.square()
    squares.mul_(-c * x.shape[1] / squares.sum(dim=1, keepdim=True)).add_(1.0 + c)
    return x.mul_(squares.clamp_(min=0.05).rsqrt_())


@dataclass(frozen=True, kw_only=True)
class _Members:
    """Which head each entry belongs to, (length,), and how many entries each head has."""

    head: torch.Tensor
    widths: FloatArray

    def equalize(self, vectors: torch.Tensor) -> None:
        """Divide the entries of each head by their root mean square, in place; entries that are all zero remain."""
        if np.ptp(self.widths) == 0.0:  # no row or column is empty: faster
            parts = vectors.view(len(vectors), len(self.widths), -1)
            roots = torch.linalg.vector_norm(parts, dim=2, keepdim=True).mul_(float(self.widths[0]) ** -0.5)
            parts.div_(roots.clamp_(min=torch.finfo(roots.dtype).tiny))
            return
        sums = torch.zeros((len(vectors), len(self.widths)), dtype=vectors.dtype, device=vectors.device)
        sums.index_add_(1, self.head, vectors.square())
        means = sums / torch.from_numpy(self.widths).to(sums)
        vectors.div_(means.clamp_(min=torch.finfo(means.dtype).tiny).sqrt_()[:, self.head])


def has_heads(length: int, heads: int) -> bool:
    """Tell whether the vectors of one side consist of several equal parts, each with entries enough to estimate its mass."""
    return heads > 1 and length % heads == 0 and length // heads >= _LEAST_WIDTH


def _members(present: torch.Tensor, heads: int) -> _Members | None:
    if not has_heads(len(present), heads):
        return None
    head = torch.arange(heads, device=present.device).repeat_interleave(len(present) // heads)[present]
    kept, head = torch.unique(head, return_inverse=True)
    return _Members(head=head, widths=torch.bincount(head, minlength=len(kept)).cpu().numpy().astype(np.float64))


def vector_distances(
    vectors: torch.Tensor,
    variances: torch.Tensor,
    w: torch.Tensor,
    other: torch.Tensor,
    share: torch.Tensor | None = None,
    heads: int = 1,
) -> torch.Tensor:
    """Return D of vectors whose entries are divided by their standard deviation in the null and normalized again; shape (K,).

    At singular value s the entries have the variance Im T_i / sum Im T, T_i = -1 / (w^2 + a_i w Y). Outside the support, where
    both vanish with the imaginary part of w, the ratio tends to T'_i / sum T'. Entries without variance are left out. A
    standardized entry x becomes x / sqrt(1 - c (x^2 - 1)), which takes out of the estimate of its variance what it contributed
    itself; this matters for the long vectors of thin matrices.

    With `heads`, the entries of each attention head are divided by their own root mean square as well: what is left is how the
    entries are distributed within the heads, whatever part of the vector each head holds. Such a part is estimated from `width`
    entries, which changes the fourth cumulant like c = (1 / width - 1 / length) / 2.

    Args:
        vectors: as rows, (K, length).
        variances: of the side of the vectors, (length,).
        w: from `Scalars`, (K,).
        other: Y for left, X for right vectors, (K,).
        share: c, from `shares`, (K,); None: the variances are known.
        heads: number of equal parts of the vectors, one after the other; 1 for vectors without heads.

    Raises:
        ScaleError: the variances of a vector are out of range.
    """
    present = variances > 0.0
    length = int(present.sum())
    scaled = _standardizer(vectors, variances, w, other, share, heads)
    found = ks_distances(len(vectors), length, vectors.device, scaled)
    if not bool(found.isfinite().all()):
        raise ScaleError("the variances of the entries of a vector span more orders of magnitude than float32 has")
    return found


def standardized(
    vectors: torch.Tensor,
    variances: torch.Tensor,
    w: torch.Tensor,
    other: torch.Tensor,
    share: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return vectors whose entries are divided by their standard deviation in the null, up to a factor for each vector; float32.

    The arguments are those of `vector_distances`. Entries without variance are left out.
    """
    return _standardizer(vectors, variances, w, other, share)(slice(0, len(vectors)))


def _standardizer(
    vectors: torch.Tensor,
    variances: torch.Tensor,
    w: torch.Tensor,
    other: torch.Tensor,
    share: torch.Tensor | None,
    heads: int = 1,
) -> Callable[[slice], torch.Tensor]:
    """Return the function that standardizes some of the vectors; see `vector_distances`."""
    present = variances > 0.0
    complete = bool(present.all())
    largest = float(variances.max())
    a = ((variances if complete else variances[present]) / largest).float()[None, :]
    length = a.shape[1]
    ratio = other / w * largest
    size = 1.0 + ratio.abs()
    constant, real, imaginary = (1.0 / size).float(), (ratio.real / size).float(), (ratio.imag / size).float()
    base, slope = (w * w).imag, (w * other).imag * largest
    # Inside the support, the imaginary part of w stands for zero: entries of a variance below it would seem to have its own.
    dense = (w * other).imag * (w * w).abs() > _DENSE * (w * other).abs() * base
    base = torch.where(dense, 0.0, base)
    base, slope = (base / (base + slope)).float(), (slope / (base + slope)).float()
    own = torch.zeros_like(constant) if share is None else share.float()
    members = _members(present, heads)
    if members is not None:
        own = own + float(np.mean(0.5 / members.widths - 0.5 / length))
    changed = (own.abs() * float(np.sqrt(length)) > _NEGLIGIBLE).cpu().numpy()

    def scaled(part: slice) -> torch.Tensor:
        block = vectors[part] if complete else vectors[part][:, present]
        # |1 + a Y/w|^2 / (Im w^2 + a Im wY), up to a factor per vector
        weight = torch.addcmul(constant[part, None], a, real[part, None]).square_()
        crossed = a * imaginary[part, None]
        weight.addcmul_(crossed, crossed)
        weight.div_(torch.addcmul(base[part, None], a, slope[part, None])).sqrt_()
        weight.mul_(block.float())
        if members is not None:
            members.equalize(weight)
        some = np.flatnonzero(changed[part])
        if len(some) == len(weight):  # no copies
            return _without_own(weight, own[part, None])
        if len(some):
            ranks = torch.from_numpy(some).to(vectors.device)
            weight[ranks] = _without_own(weight[ranks], own[part][ranks, None])
        return weight

    return scaled
