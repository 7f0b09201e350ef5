"""Minimal model of outliers below the bulk: a linear student of a rank-1 teacher, and the spectrum that follows.

    W = theta v u^T + X,   theta = lambda c,   X = Sigma^(1/2) G,   Sigma = alpha (1 - c v v^T),   c = alpha beta / (1 + alpha beta)

W is K x N, G has independent Gaussian entries of variance 1/N, v (length K) and u (length N) are unit vectors. Training with
strength beta removes the noise of the prior (variance alpha) from the direction v and adds the teacher (strength lambda). That
direction then has less variance than noise: the learned information is in a singular value *below* the bulk.

Derivation of the closed forms. The row v^T W is a vector w of N entries; the other K - 1 directions are white noise of variance
alpha/N, independent of w and invariant under rotations of the N coordinates. So only the length of w matters, whose square is
eta = alpha (1 - c) + theta^2 up to O(1/sqrt N): W has the spectrum of a spiked covariance with one population eigenvalue eta
among alphas (Baik and Silverstein, J. Multivariate Anal. 97, 1382 (2006)), and its left vector has the known overlap
(Paul, Statistica Sinica 17, 1617 (2007)). The first component of W W^T x = nu^2 x is w . y = nu (x . v) for the right vector
y. The part theta u of w is the teacher, and the part of y that is orthogonal to w has a random direction. Hence
y . u = nu theta (x . v) / eta.

Source: Staats, Thamm, Rosenow, arXiv 2410.17770v3, sec. 6 (model and nu_min); the overlaps are derived here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from scanner.rmt.decomposition import decompose
from scanner.rmt.marchenko_pastur import FloatArray

Side = Literal["left", "right"]


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """One singular triplet outside the bulk; overlaps are absolute values of scalar products of unit vectors."""

    side: Side
    """`left`: below the bulk; `right`: above it."""
    singular_value: float
    overlap_v: float
    """Overlap of the left singular vector (length K) with v."""
    overlap_u: float
    """Overlap of the right singular vector (length N) with u."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One W (K x N) and the unit vectors that it was made from."""

    matrix: FloatArray
    v: FloatArray
    u: FloatArray


@dataclass(frozen=True, kw_only=True)
class MinimalModel:
    """A linear student of a rank-1 teacher, in the units of the prior: the edges of the bulk are sqrt(alpha) (1 -/+ sqrt q).

    Raises:
        ValueError: alpha not positive, beta or strength negative, or not 1 <= rows <= cols.
    """

    alpha: float = 1.0
    """Variance of the prior: entries of an untrained W have variance alpha / cols."""
    beta: float
    """Strength of training; infinity is allowed."""
    strength: float = 0.2
    """Lambda, the singular value of the teacher."""
    rows: int = 512
    """K, the number of outputs: the length of v."""
    cols: int = 2048
    """N, the number of inputs: the length of u."""

    def __post_init__(self) -> None:
        if not (0.0 < self.alpha < math.inf and self.beta >= 0.0 and 0.0 <= self.strength < math.inf):
            raise ValueError(
                f"alpha > 0, beta >= 0 and strength >= 0 are required, got {self.alpha}, {self.beta}, {self.strength}"
            )
        if not 1 <= self.rows <= self.cols:
            raise ValueError(f"the model needs 1 <= rows <= cols, got {self.rows} x {self.cols}")

    @classmethod
    def at(
        cls, t: float, *, alpha: float = 1.0, strength: float = 0.2, rows: int = 512, cols: int = 2048
    ) -> MinimalModel:
        """Return the model with t = 1 / (1 + alpha beta): 1 is untrained, 0 fully trained.

        Raises:
            ValueError: t is outside [0, 1], or an error of the class.
        """
        if not 0.0 <= t <= 1.0:
            raise ValueError(f"t = 1 / (1 + alpha beta) is in [0, 1], got {t}")
        beta = math.inf if t == 0.0 else (1.0 - t) / (alpha * t)
        return cls(alpha=alpha, beta=beta, strength=strength, rows=rows, cols=cols)

    @property
    def q(self) -> float:
        """Aspect ratio K/N, in (0, 1]."""
        return self.rows / self.cols

    @property
    def learned(self) -> float:
        """c = alpha beta / (1 + alpha beta): 0 untrained, 1 fully trained."""
        return 1.0 if math.isinf(self.beta) else self.alpha * self.beta / (1.0 + self.alpha * self.beta)

    @property
    def theta(self) -> float:
        """Lambda c: the strength of the teacher in W."""
        return self.strength * self.learned

    @property
    def eta(self) -> float:
        """Expected square of the row v^T W: alpha (1 - c) + theta^2."""
        return self.alpha * (1.0 - self.learned) + self.theta**2

    @property
    def edges(self) -> tuple[float, float]:
        """Edges of the bulk of the singular values: sqrt(alpha) (1 -/+ sqrt q)."""
        root, scale = math.sqrt(self.q), math.sqrt(self.alpha)
        return scale * (1.0 - root), scale * (1.0 + root)

    def outlier(self) -> Outlier | None:
        """Return the singular triplet outside the bulk for N -> infinity at fixed q; None if there is none.

        nu^2 = eta + q alpha eta / (eta - alpha), below the bulk for eta < alpha (1 - sqrt q), above it for
        eta > alpha (1 + sqrt q); with d = eta / alpha - 1, (x . v)^2 = (1 - q / d^2) / (1 + q / d).
        """
        q, alpha, eta = self.q, self.alpha, self.eta
        if alpha * (1.0 - math.sqrt(q)) <= eta <= alpha * (1.0 + math.sqrt(q)) or eta == 0.0:
            return None
        d = eta / alpha - 1.0
        value = math.sqrt(eta + q * eta / d)
        overlap_v = math.sqrt((1.0 - q / d**2) / (1.0 + q / d))
        return Outlier(
            side="left" if d < 0.0 else "right",
            singular_value=value,
            overlap_v=overlap_v,
            overlap_u=value * self.theta * overlap_v / eta,
        )

    def sample(self, seed: int) -> Sample:
        """Draw one W of rows x cols, with v and u uniformly distributed on their spheres.

        The square root of Sigma is exact: (1 - (1 - sqrt(1 - c)) v v^T) sqrt(alpha), so no K x K matrix is needed.
        """
        rng = np.random.default_rng(seed)
        v, u = (_unit(rng.standard_normal(length)) for length in (self.rows, self.cols))
        noise = rng.standard_normal((self.rows, self.cols)) * math.sqrt(self.alpha / self.cols)
        row = (math.sqrt(1.0 - self.learned) - 1.0) * (v @ noise) + self.theta * u
        return Sample(matrix=noise + np.outer(v, row), v=v, u=u)


def measure(sample: Sample, side: Side = "left") -> Outlier:
    """Return the smallest (`left`) or largest (`right`) singular triplet of a sampled W, whether or not it is outside the bulk."""
    parts = decompose(torch.from_numpy(sample.matrix))
    k = -1 if side == "left" else 0
    left, right = parts.left[k].cpu().numpy(), parts.right[k].cpu().numpy()
    return Outlier(
        side=side,
        singular_value=float(parts.singular_values[k]),
        overlap_v=float(abs(left @ sample.v)),
        overlap_u=float(abs(right @ sample.u)),
    )


def merging_betas(*, alpha: float = 1.0, strength: float = 0.2, q: float = 0.25) -> tuple[float, float] | None:
    """Return the open interval of beta in which an outlier below the bulk exists; None if there is none for any beta.

    At its ends, eta = alpha (1 - sqrt q), that is lambda^2 c^2 - alpha c + alpha sqrt q = 0, and the outlier merges with the
    bulk. The upper end is infinity unless the teacher is so strong (lambda^2 > alpha (1 - sqrt q)) that its signal moves the
    direction back into the bulk.

    Raises:
        ValueError: alpha not positive, strength negative, or q outside (0, 1].
    """
    if not (alpha > 0.0 and strength >= 0.0 and 0.0 < q <= 1.0):
        raise ValueError(f"alpha > 0, strength >= 0 and 0 < q <= 1 are required, got {alpha}, {strength}, {q}")
    root = math.sqrt(q)
    discriminant = alpha * alpha - 4.0 * strength**2 * alpha * root
    if discriminant <= 0.0:
        return None
    # Both roots, without the cancellation in alpha - sqrt(...), which would also divide by zero at strength = 0.
    first = 2.0 * alpha * root / (alpha + math.sqrt(discriminant))
    second = (alpha + math.sqrt(discriminant)) / (2.0 * strength**2) if strength > 0.0 else math.inf
    if first >= 1.0:
        return None
    return first / (alpha * (1.0 - first)), math.inf if second >= 1.0 else second / (alpha * (1.0 - second))


def _unit(vector: FloatArray) -> FloatArray:
    return np.asarray(vector / np.linalg.norm(vector))
