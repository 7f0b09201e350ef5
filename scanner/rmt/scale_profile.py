"""Row and column variances of a matrix, estimated from its decomposition: of all of it, or without the values above the bulk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from scanner.rmt.marchenko_pastur import FloatArray
from scanner.rmt.scale_null import Profile, ScaleEdges, ScaleError, edges, in_support, solve

#: Rounds after which the search for the values to leave out of a robust profile has failed.
MAX_ROUNDS = 50
# Largest share of the values that a robust profile may leave out, and the least number that is looked at.
_MOST_LEFT_OUT = 0.5
_LEAST_TOP = 64
# Share of the values that may be in and out of the set in turn: leaving so many of a bulk out makes its edges 1 % too small.
_UNDECIDED = 0.02
# A row of which all but this share lies in the directions that are left out has no variance that could be estimated.
_LEAST_REST = 1e-10
# Singular triplets whose sums are kept together, at least, and how many groups at most.
_GROUP, _GROUPS = 32, 16
# Values below the upper edge that are looked at for gaps of the support: so many, and then one of so many.
_FIRST_LOOKED_AT = 8


@dataclass(frozen=True, kw_only=True)
class ScaleFit:
    """A profile and its edges, in the units of the singular values."""

    profile: Profile
    edges: ScaleEdges


@dataclass(frozen=True, kw_only=True)
class _Side:
    """Sums over groups of triplets, (groups, length): of s_k^2 x_k^2 (`energy`) and x_k^2 (`mass`), x_k the vectors of one side."""

    vectors: torch.Tensor
    squares: FloatArray
    group: int
    energy: FloatArray
    mass: FloatArray

    @property
    def length(self) -> int:
        """Of a vector."""
        return self.vectors.shape[1]

    def _own(self, start: int, stop: int) -> FloatArray:
        found: FloatArray = self.vectors[start:stop].square().cpu().numpy()
        return found

    def split(self, out: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Return the energy of the triplets that are kept, and the mass of those that are `out`, by entry.

        Args:
            out: ascending ranks, mostly the first ones.
        """
        last = int(out[-1]) + 1 if len(out) else 0
        first = last % self.group
        whole = -(-last // self.group)
        energy, mass = self.energy[whole:].sum(axis=0), self.mass[: last // self.group].sum(axis=0)
        if first:
            stop = min(whole * self.group, len(self.squares))
            own = self._own(last - first, stop)
            energy += self.squares[last:stop] @ own[first:]
            mass += own[:first].sum(axis=0)
        for k in np.setdiff1d(np.arange(last), out):
            own = self._own(k, k + 1)[0]
            energy += self.squares[k] * own
            mass -= own
        return energy, mass


def _sums(vectors: torch.Tensor, squares: torch.Tensor) -> _Side:
    count = len(squares)
    group = max(_GROUP, count // _GROUPS)
    starts = range(0, count, group)
    weights = torch.stack([squares, torch.ones_like(squares)])
    found = torch.empty((2, len(starts), vectors.shape[1]), dtype=torch.float64, device=vectors.device)
    for at, start in enumerate(starts):
        found[:, at] = weights[:, start : start + group] @ vectors[start : start + group].square()
    energy, mass = found.cpu().numpy()
    return _Side(vectors=vectors, squares=squares.cpu().numpy(), group=group, energy=energy, mass=mass)


def _variances(side: _Side, out: NDArray[np.int64], across: int) -> FloatArray:
    """Return the mean square of the entries of each row (or column), without the triplets that are left out."""
    energy, mass = side.split(out)
    rest = 1.0 - mass
    found: FloatArray = energy / (np.maximum(rest, _LEAST_REST) * (across - len(out)))
    unknown = rest < _LEAST_REST
    if unknown.any():
        # All of the row lies in the directions that are left out: it is taken to be as noisy as the others.
        others = found[~unknown & (found > 0.0)]
        if not len(others):
            raise ScaleError("every row or column lies in the directions of the outliers: no noise is left")
        found[unknown] = np.median(others)
    return found


def _without_empty(variances: FloatArray, longest: int) -> FloatArray:
    """Set variances to zero that are zero up to rounding, by the rule for singular values."""
    smallest = variances.max() * (longest * np.finfo(np.float64).eps) ** 2
    return np.where(variances > smallest, variances, 0.0)


def _profile(left: _Side, right: _Side, left_out: NDArray[np.int64]) -> Profile:
    """Estimate the profile from the triplets without those of the ascending ranks `left_out`."""
    m, n, count = left.length, right.length, len(left_out)
    kept = np.ones(len(left.squares), dtype=bool)
    kept[left_out] = False
    energy = left.squares[kept].sum()
    if not energy > 0.0:
        raise ScaleError("the matrix has no entry that is not zero" if count == 0 else "nothing is left but outliers")
    scale = np.sqrt(energy / ((m - count) * (n - count)))
    rows = _without_empty(_variances(left, left_out, n) / scale, max(m, n))
    cols = _without_empty(_variances(right, left_out, m) / scale, max(m, n))
    if min(np.count_nonzero(rows), np.count_nonzero(cols)) < 2:
        raise ScaleError("fewer than two rows or two columns have entries, which is no variance profile")
    device = left.vectors.device
    a, b, used = (torch.from_numpy(values).to(device) for values in (rows, cols, kept))
    return Profile(rows=a, cols=b, kept=used)


def fit_scale(
    singular_values: torch.Tensor, left: torch.Tensor, right: torch.Tensor
) -> tuple[ScaleFit, ScaleFit | ScaleError]:
    """Fit the profile of all triplets (`total`), and the one without the outliers above the bulk (`robust`).

    total: a_i = mean_j W_ij^2 / g, b_j = mean_i W_ij^2 / g, g = sqrt(mean W^2). Strong spikes inflate it.
    robust: starts there; the values above the upper edge, or in a gap of the support above the bulk, are left out, and the profile
    is estimated again, row_i = sum_kept s_k^2 u_ik^2 / ((1 - sum_out u_ik^2) (n - r)), until the set no longer changes.

    Args:
        singular_values: descending, shape (K,); in units in which their squares neither overflow nor underflow.
        left: left singular vectors as rows, (K, m).
        right: right singular vectors as rows, (K, n).

    Returns:
        The total and the robust fit; instead of the latter the reason if there is none.

    Raises:
        ScaleError: there is no profile: a zero matrix, or one with entries in fewer than two rows or columns.
    """
    squares = singular_values.square()
    sides = _sums(left, squares), _sums(right, squares)
    profile = _profile(*sides, np.empty(0, dtype=np.int64))
    total = ScaleFit(profile=profile, edges=edges(profile))
    try:
        return total, _robust(singular_values, sides, total)
    except ScaleError as error:
        return total, error


def _robust(singular_values: torch.Tensor, sides: tuple[_Side, _Side], total: ScaleFit) -> ScaleFit:
    count, profile = len(singular_values), total.profile
    smallest = singular_values[0] * max(side.length for side in sides) * np.finfo(np.float64).eps
    values = singular_values[singular_values > smallest]  # zeros are below every bulk
    # Gaps of the support are looked for among the largest values only; those that are closer to the bulk are few.
    looked_at = max(_LEAST_TOP, count // 4)
    now, seen, gaps = np.empty(0, dtype=np.int64), set(), False
    for _ in range(MAX_ROUNDS):
        seen.add(now.tobytes())
        following = _above(profile, values[:looked_at], gaps=gaps, whole=looked_at >= len(values))
        if not gaps and np.array_equal(following, now):  # looking for gaps takes longer
            gaps = True
            following = _above(profile, values[:looked_at], gaps=True, whole=looked_at >= len(values))
        while len(following) == looked_at < len(values) and looked_at <= _MOST_LEFT_OUT * count:
            looked_at *= 2
            following = _above(profile, values[:looked_at], gaps=gaps, whole=looked_at >= len(values))
        if np.array_equal(following, now):
            return ScaleFit(profile=profile, edges=edges(profile) if len(now) else total.edges)
        if len(following) == len(values):
            raise ScaleError("every singular value that is not zero is above the bulk of the others: no noise is left")
        if len(following) > _MOST_LEFT_OUT * count:
            raise ScaleError(
                f"the robust profile left out {len(following)} of {count} singular values as outliers: "
                "`--scale total` uses all of them"
            )
        if following.tobytes() in seen:
            larger = max(now, following, key=len)
            if len(np.setxor1d(now, following)) <= max(1, _UNDECIDED * count):
                # These values are at a border of the support: which way they are counted hardly changes the profile.
                profile = _profile(*sides, larger)
                return ScaleFit(profile=profile, edges=edges(profile))
            raise ScaleError(
                f"the robust profile does not settle: {len(now)} and {len(following)} of {count} singular values are left out "
                "in turn: `--scale total` uses all of them"
            )
        now = following
        profile = _profile(*sides, now)
    raise ScaleError(f"the robust profile did not settle within {MAX_ROUNDS} rounds: `--scale total` uses all of them")


def inequality(variances: torch.Tensor) -> float:
    """Return mean(a^2) / mean(a)^2 of variances a: 1 if all are equal, their number if only one is not zero."""
    return float(variances.square().mean() / variances.mean() ** 2)


def _above(profile: Profile, top: torch.Tensor, *, gaps: bool, whole: bool) -> NDArray[np.int64]:
    """Return the ranks of the largest values that are above the upper edge, or (with `gaps`) in a gap of the support.

    Where `top` is the whole spectrum, the values below its last one in the support are below the bulk, and not in a gap.
    """
    upper = float(np.sqrt(profile.upper.value))
    limits = ScaleEdges(lower=0.0, upper=upper, threshold=0.0)
    above = int((top > upper).sum())
    left = top[above:]
    if not gaps:
        return np.arange(above)

    def outside(ranks: slice | list[int]) -> NDArray[np.bool_]:
        some = left[ranks]
        return ~in_support(solve(profile, some, limits), some, limits) if len(some) else np.zeros(0, dtype=bool)

    # A few values tell whether there is a gap with values in it.
    some = [*range(min(_FIRST_LOOKED_AT, len(left))), *range(_FIRST_LOOKED_AT, len(left), _FIRST_LOOKED_AT)]
    if not outside(some).any():
        return np.arange(above)
    found = outside(slice(None))
    if whole:
        inside = np.flatnonzero(~found)
        found[inside[-1] + 1 if len(inside) else 0 :] = False
    return np.concatenate([np.arange(above), above + np.flatnonzero(found)])
