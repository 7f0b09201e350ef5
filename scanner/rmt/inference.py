"""What may be called significant among many tests: q-values, and one p-value for all vectors of a side of a matrix.

A matrix has thousands of singular vectors, so that p < 0.01 alone says nothing: one in a hundred random vectors has it. Here the
family of tests is the side of a matrix, which no selection of rows can make smaller.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from scanner.rmt.marchenko_pastur import FloatArray

# Smaller p-values of all vectors together are not told apart.
_SMALLEST = 1e-300


def q_values(p_values: FloatArray) -> FloatArray:
    """Return Benjamini-Hochberg q-values: q <= level for all vectors that a false discovery rate of this level selects.

    q of the i-th smallest of N p-values is the smallest p_j N / j over j >= i. The expected share of random vectors among those
    with q <= level is at most level if the tests are independent or positively dependent.
    Source: Benjamini and Hochberg, J. R. Stat. Soc. B 57, 289 (1995); Benjamini and Yekutieli, Ann. Stat. 29, 1165 (2001).

    Args:
        p_values: of one family, shape (K,); NaN entries are no tests, and stay NaN.
    """
    found = np.full(p_values.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    raised = p_values[order] * (len(order) / np.arange(1, len(order) + 1))
    found[order] = np.minimum(np.minimum.accumulate(raised[::-1])[::-1], 1.0)
    return found


def omnibus(p_values: FloatArray) -> float:
    """Return one p-value for the hypothesis that all vectors of a family are random: Fisher's, from -2 sum ln p.

    It responds to a few vectors with tiny p-values and to many that are somewhat small, and not to p-values that are too large
    (which orthogonality makes so if other vectors share a mean). Independent p-values are assumed. Those of one matrix depend on
    each other weakly and negatively, so that it rejects random matrices a little less often than its level says.
    Source: Fisher, Statistical Methods for Research Workers, section 21.1 (1932).

    Args:
        p_values: of one family, shape (K,); NaN entries are no tests. NaN if there is no test.
    """
    tested = p_values[~np.isnan(p_values)]
    if not tested.size:
        return float("nan")
    # -2 sum ln p has the chi-squared distribution with 2 N degrees of freedom.
    return max(float(special.gammaincc(tested.size, -np.log(tested).sum())), _SMALLEST)
