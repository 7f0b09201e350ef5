"""Comparison of two matrices: change of the weights, overlaps of singular vectors, principal angles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from scanner.rmt.marchenko_pastur import FloatArray

#: Number of the largest tuned vectors that can be intruders, and the overlap below which one is an intruder.
INTRUDER_RANKS = 10
INTRUDER_OVERLAP = 0.5

DECILES = 10

# Overlaps are computed in blocks of rows: the whole r x r matrix would be as large as the matrices.
_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class Change:
    """Change of the weights: |W_tuned - W_base|_F / |W_base|_F, the cosine of both as vectors, and equality to the last bit."""

    relative: float
    cosine: float
    identical: bool


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """Largest overlap |x_k . x0_j| of every tuned vector with a base vector, and its j; arrays of length r."""

    overlap: FloatArray
    match: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Subspaces:
    """Principal angles (radians) between the subspaces spanned by two sets of d vectors, and their overlap.

    `overlap` is the mean squared cosine: 1 for equal subspaces, d / n for random ones in n dimensions.
    """

    dimensions: int
    overlap: float
    angle_smallest: float
    angle_mean: float
    angle_largest: float


def weight_change(base: torch.Tensor, tuned: torch.Tensor) -> Change:
    """Compare two matrices of the same shape, entry by entry, in float64.

    The relative change of a zero base matrix is infinite, or 0 if both are zero; the cosine is NaN if one is zero.
    """
    base, tuned = base.to(torch.float64), tuned.to(torch.float64)
    norm_base, norm_tuned = (float(torch.linalg.vector_norm(matrix)) for matrix in (base, tuned))
    moved = float(torch.linalg.vector_norm(tuned - base))
    product = float(torch.sum(base * tuned))
    return Change(
        relative=moved / norm_base if norm_base > 0.0 else (0.0 if moved == 0.0 else float("inf")),
        cosine=product / (norm_base * norm_tuned) if norm_base > 0.0 and norm_tuned > 0.0 else float("nan"),
        identical=bool(torch.equal(base, tuned)),
    )


def best_overlaps(base: torch.Tensor, tuned: torch.Tensor) -> Overlaps:
    """Find the base vector with the largest absolute overlap for each tuned vector (the sign of a singular vector is arbitrary).

    Args:
        base: (r0, n), unit vectors as rows.
        tuned: (r, n), unit vectors as rows.
    """
    overlap, match = [], []
    for start in range(0, len(tuned), _BLOCK):
        found = (tuned[start : start + _BLOCK] @ base.T).abs_().max(dim=1)
        overlap.append(found.values)
        match.append(found.indices)
    return Overlaps(
        overlap=torch.cat(overlap).clamp(max=1.0).cpu().numpy(), match=torch.cat(match).to(torch.int64).cpu().numpy()
    )


def intruders(left: Overlaps) -> int:
    """Count intruder dimensions: those of the `INTRUDER_RANKS` largest tuned left vectors that overlap with no base vector.

    Source: Shuttleworth, Andreas, Torralba and Sharma, arXiv 2410.21228; threshold 0.5.
    """
    return int(np.count_nonzero(left.overlap[:INTRUDER_RANKS] < INTRUDER_OVERLAP))


def decile_ranks(count: int) -> list[tuple[int, range]]:
    """Return the ranks of each decile, 1 = smallest singular values; fewer than ten deciles if there are fewer values."""
    decile = DECILES - (DECILES * np.arange(count)) // max(count, 1)
    found = [(number, np.flatnonzero(decile == number)) for number in range(1, DECILES + 1)]
    return [(number, range(int(ranks[0]), int(ranks[-1]) + 1)) for number, ranks in found if len(ranks)]


def principal_angles(base: torch.Tensor, tuned: torch.Tensor) -> Subspaces:
    """Compute the angles between the spans of two sets of orthonormal rows, (d, n) each.

    Below 45 degrees, arccos of a cosine near 1 loses half of the digits; the sine (the part of `tuned` outside `base`) does not.
    Source: Bjoerck and Golub, Math. Comp. 27, 579 (1973).
    """
    product = tuned @ base.T
    cosines = torch.linalg.svdvals(product).clamp(max=1.0)
    sines = torch.linalg.svdvals(tuned - product @ base).clamp(max=1.0).flip(0)
    angles = torch.where(cosines > 0.5**0.5, torch.asin(sines), torch.acos(cosines)).cpu().numpy()
    return Subspaces(
        dimensions=len(angles),
        overlap=float((cosines**2).mean()),
        angle_smallest=float(angles.min()),
        angle_mean=float(angles.mean()),
        angle_largest=float(angles.max()),
    )


def decile_subspaces(base: torch.Tensor, tuned: torch.Tensor) -> list[tuple[int, Subspaces]]:
    """Compute the principal angles between the same deciles of both; rows are vectors by descending singular value."""
    ranks = decile_ranks(min(len(base), len(tuned)))
    return [
        (number, principal_angles(base[part.start : part.stop], tuned[part.start : part.stop]))
        for number, part in ranks
    ]
