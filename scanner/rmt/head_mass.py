"""Masses of attention heads in singular vectors: is the mass of a vector concentrated in few heads.

A vector of H w entries, w for each of H heads, has the masses m_h = sum of x_i^2 over the entries of head h, which add up to 1.
1 / sum_h m_h^2 is the effective number of heads: H if all have the same mass, 1 if one head has all of it. Under the null the
vector is random, uniform on the sphere, and the masses have a Dirichlet distribution with all parameters w/2: sums of squares of
Gaussian numbers, divided by their sum. p = (1 + #{sum m^2 of the null >= sum m^2}) / (1 + N) with N draws of this distribution,
seeded: p is 1e-5 at least.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike

from scanner.rmt.marchenko_pastur import FloatArray

DRAWS = 100_000
_BLOCK = 4_000_000  # numbers that are drawn at a time


def head_masses(vectors: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the masses m_h of vectors, given as rows (K, heads * w); (K, heads), float64.

    Raises:
        ValueError: the length of the vectors is no multiple of `heads`.
    """
    count, length = vectors.shape
    if heads < 1 or length % heads:
        raise ValueError(f"vectors of {length} entries are not {heads} heads of one width")
    squares = vectors.to(torch.float64).square().reshape(count, heads, length // heads).sum(dim=2)
    return squares / squares.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


@lru_cache(maxsize=32)
def _null(heads: int, width: int) -> FloatArray:
    """Return sorted draws of sum m^2 for random vectors."""
    generator = np.random.default_rng((heads, width))
    found = []
    for start in range(0, DRAWS, block := max(1, _BLOCK // heads)):
        drawn = generator.standard_gamma(0.5 * width, size=(min(block, DRAWS - start), heads))
        found.append(np.sum(np.square(drawn), axis=1) / np.square(drawn.sum(axis=1)))
    return np.sort(np.concatenate(found))


def p_values(concentration: ArrayLike, heads: int, width: int) -> FloatArray:
    """Return the p-values of sum m^2 (any shape): small if few heads have most of the mass; NaN if there is only one head.

    Args:
        concentration: sum_h m_h^2 of vectors.
        heads: H.
        width: w, entries of a head.
    """
    value = np.asarray(concentration, dtype=np.float64)
    if heads == 1:
        return np.full(value.shape, np.nan)
    null = _null(heads, width)
    # A tolerance far below the resolution of the null makes equal masses equal, whatever the rounding.
    above = len(null) - np.searchsorted(null, value * (1.0 - 1e-12), side="left")
    return np.asarray((1.0 + above) / (1.0 + len(null)), dtype=np.float64)
