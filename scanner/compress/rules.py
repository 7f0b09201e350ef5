"""Which singular triplets of a matrix are kept, and the factors that follow; pure functions of one matrix.

A matrix W (m, n) becomes L R with L (m, r) and R (r, n): r (m + n) parameters instead of m n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from scanner.compress.config import TripletRule
from scanner.rmt.analysis import summarize
from scanner.rmt.decomposition import Decomposition, decompose
from scanner.rmt.ks_null import KsNull
from scanner.rmt.metrics import local_average

FloatArray = NDArray[np.float64]
Indices = NDArray[np.intp]

#: Ridge of second moments without a Cholesky factor, relative to the mean of their diagonal; it grows until they have one.
_RIDGE = 1e-10


@dataclass(frozen=True, kw_only=True)
class Factors:
    """W ~ left @ right: left (m, r) and right (r, n), in float32 on the CPU.

    `kept` (r,) has the ranks k of the triplets of W that are kept; None if the factors are not made of triplets of W.
    """

    left: torch.Tensor
    right: torch.Tensor
    kept: Indices | None

    @property
    def rank(self) -> int:
        """The number r."""
        return self.right.shape[0]

    @property
    def parameters(self) -> int:
        """r (m + n)."""
        return self.left.numel() + self.right.numel()

    def to(self, dtype: torch.dtype) -> Factors:
        """Return the factors rounded to a type, in float32."""
        return Factors(left=self.left.to(dtype).float(), right=self.right.to(dtype).float(), kept=self.kept)


def rank_within(budget: float, rows: int, cols: int) -> int:
    """Return the largest rank r with r (rows + cols) <= budget rows cols; at least 1.

    Raises:
        ValueError: `budget` is not between 0 and 1.
    """
    if not 0.0 < budget < 1.0:
        raise ValueError(f"`budget` must be between 0 and 1, got {budget:g}")
    return max(1, int(budget * rows * cols / (rows + cols) * (1.0 + 1e-12)))


def kept_ranks(scores: FloatArray, count: int) -> Indices:
    """Return the `count` ranks k with the largest scores, ascending. NaN comes last; of equal scores the smaller k comes first."""
    order = np.argsort(np.where(np.isnan(scores), np.inf, -scores), kind="stable")
    return np.sort(order[:count])


def scores_of(
    by: TripletRule, parts: Decomposition, sum_of_entries: float, second: torch.Tensor | None
) -> tuple[FloatArray, str]:
    """Return the score of each triplet, (r,), of which the largest are kept, and the rule that it comes from.

    energy: s_k^2. p and p_scale: minus the mean of the local p-values of u_k and v_k (NaN where there is none). importance:
    s_k^2 v_k^T F v_k, which the triplet adds to the mean square of the output W h, with F = <h h^T>: the mean of h passes through
    the matrix as well, so the moments are not centered.

    The rule is `by`, but `p` for `p_scale` where a matrix has no scale null.

    Args:
        by: the rule.
        parts: the decomposition of the matrix.
        sum_of_entries: sum of its entries.
        second: F (n, n); for importance only.

    Raises:
        ValueError: `by` is importance, and `second` is None.
    """
    s = parts.singular_values.cpu().numpy().astype(np.float64)
    if by == "energy":
        return s**2, by
    if by == "importance":
        if second is None:
            raise ValueError("importance needs the second moments of the activations")
        right = parts.right.to(torch.float64).cpu()
        return s**2 * ((right @ second.to(torch.float64)) * right).sum(dim=1).numpy(), by
    found = summarize(
        parts, sum_of_entries, sigma="median", null=KsNull.parse("table"), scale="robust" if by == "p_scale" else "none"
    )
    if by == "p_scale" and found.u_p_scale is not None and found.v_p_scale is not None:
        return -(local_average(found.u_p_scale) + local_average(found.v_p_scale)) / 2, by
    return -(found.u_p_local + found.v_p_local) / 2, "p"


def truncated(parts: Decomposition, kept: Indices) -> Factors:
    """Return L = U_k sqrt(s_k) and R = sqrt(s_k) V_k^T of the triplets that are kept."""
    chosen = torch.from_numpy(kept).to(parts.left.device)
    roots = parts.singular_values[chosen].to(torch.float64).sqrt()[:, None]
    left, right = (parts.left[chosen] * roots).T, parts.right[chosen] * roots
    return Factors(left=left.float().cpu().contiguous(), right=right.float().cpu().contiguous(), kept=kept)


def cholesky(second: torch.Tensor) -> torch.Tensor:
    """Return the lower Cholesky factor S of second moments F (n, n) in float64: F = S S^T.

    Moments of fewer tokens than features have none: a ridge is added to the diagonal, the smallest power of ten times 1e-10 of its
    mean that suffices.

    Raises:
        ValueError: F is zero or has entries that are not finite.
    """
    entries = second.to(torch.float64).cpu().numpy()
    mean = float(np.trace(entries)) / len(entries)
    if not np.isfinite(entries).all() or mean <= 0.0:
        raise ValueError("the second moments of the activations are zero or not finite")
    for ridge in (0.0, *(_RIDGE * 10.0**power for power in range(11))):
        try:
            found = scipy.linalg.cholesky(entries + ridge * mean * np.eye(len(entries)), lower=True)
        except scipy.linalg.LinAlgError:
            continue
        return torch.from_numpy(np.ascontiguousarray(found))
    raise ValueError("the second moments of the activations are not positive semidefinite")


def whitened(matrix: torch.Tensor, factor: torch.Tensor, rank: int) -> Factors:
    """Return the factors of rank r with the least |W h - L R h|^2 on average over the tokens h, as in SVD-LLM.

    With F = S S^T and the SVD W S = U diag(s) V^T, L = U_r sqrt(s_r) and R = sqrt(s_r) V_r^T S^-1. Source: arXiv 2403.07378,
    sec. 3.1 (truncation-aware data whitening), without its update of the factors afterward.

    Args:
        matrix: W (m, n).
        factor: S (n, n), lower triangular.
        rank: r.
    """
    weights = matrix.to(torch.float64).cpu()
    parts = decompose(weights @ factor)
    roots = parts.singular_values[:rank].sqrt()[:, None]
    left = (parts.left[:rank] * roots).T
    # R S = Z  <=>  S^T R^T = Z^T
    target = (parts.right[:rank] * roots).numpy()
    right = scipy.linalg.solve_triangular(factor.numpy(), target.T, lower=True, trans="T").T
    return Factors(
        left=left.float().contiguous(), right=torch.from_numpy(np.ascontiguousarray(right)).float(), kept=None
    )


def as_ranges(ranks: Indices) -> str:
    """Return ascending ranks as text: `0-5,9`."""
    runs: list[list[int]] = []
    for k in ranks.tolist():
        if runs and k == runs[-1][1] + 1:
            runs[-1][1] = k
        else:
            runs.append([k, k])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
